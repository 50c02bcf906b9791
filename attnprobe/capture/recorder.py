"""How are maps taken out of a forward pass without changing it?"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnprobe.capture.buffers import BufferPool
from attnprobe.capture.layers import AttentionLayer, find_layers, patch_size, token_grid, unfused, unwrap
from attnprobe.core.errors import CaptureError
from attnprobe.core.maps import AttentionMaps, Outcome
from attnprobe.core.tap import Site

SITES: tuple[Site, ...] = ("weights", "effective")


class Recorder:
    """Collects the maps of one forward pass at a time; made by `record`."""

    def __init__(
        self, model: nn.Module, layers: list[AttentionLayer], sites: Sequence[Site], tokens: bool, pool: BufferPool
    ) -> None:
        self._model, self._layers, self._sites, self._wants_tokens = model, layers, tuple(sites), tokens
        self._pool = pool
        self._reset()

    def _reset(self) -> None:
        self._size: tuple[int, int] | None = None
        self._fired: set[int] = set()
        self._weights: Tensor | None = None
        self._effective: Tensor | None = None
        self._tokens: Tensor | None = None
        self._last_weights: Tensor | None = None
        self._differs = False

    def _see_pixels(self, pixels: Tensor) -> None:
        self._size = (pixels.shape[-2], pixels.shape[-1])

    def _keep(self, layer: int, site: str, matrix: Tensor) -> None:
        """Copy one layer's [image, head, query, key] into the stack of its site."""
        if site == "weights":
            if layer in self._fired:
                raise CaptureError(f"{self._layers[layer].name} ran twice; call take() after each forward pass.")
            self._fired.add(layer)
            self._last_weights = matrix
            if "weights" in self._sites or not self._differs:
                self._weights = self._store(self._weights, layer, matrix)
            return
        weights, self._last_weights = self._last_weights, None
        assert weights is not None, "a layer shows its weights before what it makes of them"
        if not self._differs and not _same_memory(matrix, weights):
            self._differs = True
            if "effective" in self._sites and self._weights is not None:
                self._effective = self._room_for(matrix)
                self._effective[:, :layer].copy_(self._weights[:, :layer])  # earlier layers had one matrix for both
        if self._differs and "effective" in self._sites:
            self._effective = self._store(self._effective, layer, matrix)

    def _keep_tokens(self, layer: int, _block: nn.Module, _args: object, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) else out  # a block may hand on more than its tokens
        if not isinstance(out, Tensor) or out.ndim != 3:
            raise CaptureError(f"the block of {self._layers[layer].name} returns no [image, token, width] tensor.")
        if self._tokens is None:
            shape = (out.shape[0], len(self._layers), *out.shape[1:])
            self._tokens = self._pool.empty(shape, out.dtype, out.device)
        self._tokens[:, layer].copy_(out)

    def _store(self, stack: Tensor | None, layer: int, matrix: Tensor) -> Tensor:
        if stack is None:
            stack = self._room_for(matrix)
        if matrix.shape != stack[:, layer].shape:
            raise CaptureError(
                f"{self._layers[layer].name} has maps of {tuple(matrix.shape)}, the first layer "
                f"{tuple(stack[:, 0].shape)}; capture needs token and head counts that do not change with depth."
            )
        stack[:, layer].copy_(matrix)
        return stack

    def _room_for(self, matrix: Tensor) -> Tensor:
        if matrix.ndim != 4:
            raise CaptureError(f"expected maps [image, head, query, key], got {tuple(matrix.shape)}.")
        shape = (matrix.shape[0], len(self._layers), *matrix.shape[1:])
        return self._pool.empty(shape, matrix.dtype, matrix.device)

    def take(self, image_ids: Sequence[str] | None = None, outcome: Outcome | None = None) -> list[AttentionMaps]:
        """The maps of the forward pass since the last take: at "weights", then at "effective" where that differs.

        Args:
            image_ids: one per image; "0", "1", ... if None.
            outcome: labels and predictions to travel with them.

        Raises:
            CaptureError: there was no forward pass, or some layer stayed silent: never an empty result.
        """
        silent = [layer.name for i, layer in enumerate(self._layers) if i not in self._fired]
        if silent or self._size is None:
            raise CaptureError(
                f"{len(silent)} of {len(self._layers)} attention layers never fired: {', '.join(silent[:3])}. "
                "Run the model inside `with record(...)`, once before each take()."
            )
        stacks: list[tuple[Site, Tensor]] = []
        if self._weights is not None and ("weights" in self._sites or not self._differs):
            stacks.append(("weights", self._weights))
        if self._effective is not None:
            stacks.append(("effective", self._effective))
        ids = tuple(image_ids) if image_ids is not None else tuple(str(i) for i in range(stacks[0][1].shape[0]))
        taken = [
            AttentionMaps(
                values=values,
                image_ids=ids,
                grid=token_grid(self._model, self._size),
                site=site,
                is_effective=site == "effective" or not self._differs,
                stochastic=site == "weights",
                layers=tuple(layer.name for layer in self._layers),
                tokens=self._tokens,
                outcome=outcome,
            )
            for site, values in stacks
        ]
        self._reset()
        return taken


@contextmanager
def record(
    model: nn.Module,
    sites: Sequence[Site] | Site = "effective",
    *,
    tokens: bool = False,
    pool: BufferPool | None = None,
) -> Iterator[Recorder]:
    """Listen to a model's attention: `with record(m) as r: m(x); maps = r.take()`.

    Args:
        model: one of attnprobe's variants or a timm vision transformer; compiled and parallel wrappers are looked into
            (a compiled model runs uncompiled meanwhile).
        sites: "weights", "effective" or both. Where a layer multiplies V with its softmax itself, both are one matrix,
            delivered once as site "weights" with `is_effective=True`.
        tokens: keep the output of each layer's block, too.
        pool: where maps get their memory; one of this recording's own if None.

    Hooks and switches are removed at the end, also after an exception.

    Raises:
        CaptureError: no attention layer can be read.
        ValueError: an unknown site.
    """
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    if not sites or not set(sites) <= set(SITES):
        raise ValueError(f"sites must be some of {SITES}, got {sites}.")
    inner = unwrap(model)
    layers = find_layers(inner)
    patch_size(inner)  # fails early where tokens could not be placed
    recorder = Recorder(inner, layers, sites, tokens, pool or BufferPool())
    with ExitStack() as stack:
        stack.enter_context(unfused(layers))
        if inner is not model:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        handles = [inner.patch_embed.register_forward_pre_hook(lambda _m, args: recorder._see_pixels(args[0]))]
        for handle in handles:
            stack.callback(handle.remove)
        for index, layer in enumerate(layers):
            for handle in layer.listen(partial(recorder._keep, index)):
                stack.callback(handle.remove)
            if tokens:
                handle = layer.block.register_forward_hook(partial(recorder._keep_tokens, index))
                stack.callback(handle.remove)
        yield recorder


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
