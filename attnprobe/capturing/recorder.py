"""The maps of one forward pass, collected layer by layer while it runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnprobe.capturing.call_stack import Call, tokens_in
from attnprobe.capturing.hooks import AttentionLayer, block_names, hidden_kernel, token_grid
from attnprobe.capturing.kinds import TokenPlacement, kind_of, stage_names, unplaced
from attnprobe.capturing.places import Located
from attnprobe.capturing.product import Product
from attnprobe.capturing.selection import Selection
from attnprobe.capturing.stages import BufferPool, Stage, StageKey
from attnprobe.capturing.towers import Tower, tower_names, tower_of
from attnprobe.capturing.tracing import Tracing
from attnprobe.capturing.windows import in_image
from attnprobe.core.errors import CaptureError, InputError
from attnprobe.core.grid import TokenGrid
from attnprobe.core.maps import AttentionMaps, Outcome
from attnprobe.core.sites import Site


@dataclass(kw_only=True, eq=False)
class Wanted:
    """Parts of a forward pass that are kept besides its maps; fields as in `Recording`, which is one."""

    tokens: bool = False
    values: bool = False
    factors: bool = False
    unwindow: bool = False
    selection: Selection = field(default_factory=Selection)
    budget: int | None = None
    allow_missing: bool = False


class Recorder:
    """Collects the maps of one forward pass at a time; made by a `Recording`."""

    def __init__(
        self, model: nn.Module, layers: Sequence[AttentionLayer], sites: tuple[Site, ...], wanted: Wanted,
        pool: BufferPool,
    ) -> None:  # fmt: skip
        self._model, self._layers, self._sites, self._wanted, self._pool = model, layers, sites, wanted, pool
        self._placement = TokenPlacement.of(model)
        self._known_towers = {layer.name: tower_of(layer.name) for layer in layers}
        self._room: dict[StageKey, int] = {}
        self._tracing: Tracing | None = None
        self._first_module = ""
        self.located = Located()  # nothing is known until a certificate says it
        self.rest = 0
        self.forget()

    def forget(self) -> None:
        """Drop what a forward pass left."""
        self._size: tuple[int, int] | None = None
        self.first, self.rest = self.rest, 0
        self._stages: dict[StageKey, Stage] = {}
        self._fired: dict[str, tuple[Stage, int] | None] = {}  # None: not kept
        self._bytes = 0
        self._waiting: dict[str, list[tuple[Stage, int]]] = {}
        if self._tracing is not None:
            self._tracing.new_pass()

    def follow(self, tracing: Tracing) -> None:
        """Be reported calls and products by this tracing."""
        self._tracing = tracing

    # --- reports of hooks on known layers -----------------------------------------------------------------------------

    def see_pixels(self, pixels: Tensor) -> None:
        """The images of this pass, [image, channel, row, col]."""
        self._size = (pixels.shape[-2], pixels.shape[-1])

    def keep(self, layer: str, site: str, matrix: Tensor) -> None:
        """One layer's [image, head, query, key], at "weights" and then at "effective"."""
        if site == "weights":
            if layer in self._fired:
                raise CaptureError(f"{layer} ran twice; call take() after each forward pass.")
            if matrix.ndim != 4:
                raise CaptureError(f"expected maps [image, head, query, key], got {tuple(matrix.shape)}.")
            n_tokens = matrix.shape[3]
            grid = partial(self._grid_of, layer, "self", n_tokens, partial(self._known_grid, n_tokens))
            stage = self._stage("self", matrix, matrix.shape[2], len(self._layers), grid, self._known_towers[layer])
            kept = self._has_room(stage, matrix)
            self._fired[layer] = (stage, stage.add_weights(layer, matrix)) if kept else None
        elif (place := self._fired[layer]) is not None:
            place[0].add_effective(matrix)

    def keep_tokens(self, layer: str, _block: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """The output of a known layer's block."""
        out = tokens_in(out, next(iter(args), None))
        if out is None or out.ndim != 3:
            raise CaptureError(f"the block of {layer} returns no [image, token, width] tensor.")
        if (place := self._fired[layer]) is not None:
            place[0].add_tokens(place[1], out)

    # --- reports of tracing -------------------------------------------------------------------------------------------

    def see_call(self, call: Call) -> None:
        """A module begins."""
        assert self._tracing is not None
        if not self._tracing.calls.running:
            if self._fired and call.name == self._first_module:
                raise CaptureError(f"{next(iter(self._fired))} ran twice; call take() after each forward pass.")
            self._first_module = self._first_module if self._fired else call.name
        if self._size is None and call.given is not None and call.given.ndim == 4:
            self.see_pixels(call.given)

    def see_product(self, product: Product) -> None:
        """A map is multiplied with V, in a layer without hooks."""
        layer = product.layer
        for known in self._layers:
            if layer == known.name or layer.startswith(f"{known.name}."):  # hooks have its maps
                self._keep_values(self._fired.get(known.name), product)
                return
        kind = self.located.kinds.get(layer) or kind_of(product)
        n_windows, _, n_queries, n_keys = product.effective.shape[1:]
        n_tokens = product.value_shape[1] if kind == "channel" and n_queries == n_keys else n_windows * n_keys
        guess = None if kind == "self" and product.pads(n_tokens) else self._placement.grid(n_tokens, self._size)
        grid = self._grid_of(layer, kind, n_tokens, lambda: guess)
        if self._wanted.unwindow and kind in ("window", "grid"):
            kind, product = "self", in_image(product, grid if grid.rows else None, self.located.windows.get(layer))
        weights, folded = product.weights, _folded(product.effective)
        size = n_tokens if kind == "channel" else folded.shape[2]
        stage = self._stage(kind, folded, size, 4, lambda: grid, product.tower)
        if not self._has_room(stage, folded):
            self._fired[layer] = None
            return
        if weights is None:
            index = stage.add_effective_alone(layer, folded)
            stage.lacks_effective |= product.added
        elif product.added:
            index = stage.add_softmax_alone(layer, _folded(weights))
        else:
            index = stage.add_weights(layer, folded if weights is product.effective else _folded(weights))
            stage.add_effective(folded)
        if "scores" in self._sites:
            if weights is None or product.scores is None:
                raise CaptureError(
                    f"{layer} has no scores: what its maps are made of is not one softmax, or is hidden."
                )
            stage.add_scores(_folded(product.scores))
        if self._wanted.factors:
            stage.add_factors(index, *factors_of(product))
        self._fired[layer] = (stage, index)
        self._keep_values((stage, index), product)
        if self._wanted.tokens:
            names = {call.name for call in product.calls}
            block = next((name for name in block_names(layer) if name in names), "")
            self._waiting.setdefault(block, []).append((stage, index))

    def _keep_values(self, place: tuple[Stage, int] | None, product: Product) -> None:
        """V of a layer that is kept and not cut in windows."""
        if place is not None and product.value is not None and product.value.shape[1] == 1:
            place[0].add_value_vectors(place[1], product.value[:, 0])

    def see_return(self, call: Call, out: Any) -> None:
        """A module ends; if it is the block of some layers, its output is their tokens."""
        places = self._waiting.pop(call.name, [])
        if not places or (returned := tokens_in(out, call.given)) is None:
            return
        for stage, index in places:
            if (tokens := self._image_first(call.name, returned, stage.n_queries)) is not None:
                stage.add_tokens(index, tokens)

    def _image_first(self, block: str, out: Tensor, n_tokens: int) -> Tensor | None:
        """What a block returns as [image, token, width]; None where it is not that.

        Of three axes, the image's is the one that perturbation found; without it the first, if it has as many entries
        as there are images, else the second. Of four, tokens fill rows and columns, before the channels or behind them.
        """
        n_images = self._tracing.n_images if self._tracing is not None else 0
        if out.ndim == 4:
            last, first = out.flatten(1, 2), out.flatten(2).mT
            fits = [tokens for tokens in (last, first) if tokens.shape[:2] == (n_images, n_tokens)]
            return fits[0] if len(fits) == 1 else None
        lengths = [axis for axis in (0, 1) if out.shape[axis] == n_images]
        axis = self.located.image_axes.get(block, lengths[0] if lengths else None)
        return out if axis == 0 else out.transpose(0, 1) if axis == 1 else None

    def _stage(
        self, kind: str, matrix: Tensor, size: int, room: int, grid: Callable[[], TokenGrid], tower: Tower
    ) -> Stage:
        heads, rows, columns = matrix.shape[1:]
        key = (kind, size, heads, rows, columns, tower)
        if key not in self._stages:
            room, chosen, where = self._room.get(key, room), self._wanted.selection, grid()
            room = room if chosen.layers is None else min(room, len(chosen.layers))
            if self._wanted.budget is not None:
                room = min(room, max(1, self._wanted.budget // matrix.nbytes))
            part = (chosen.heads_of(heads), chosen.queries_of(rows, kind, where))
            self._stages[key] = Stage(kind, self._sites, self._pool, room, where, rows, *part)
        return self._stages[key]

    def _has_room(self, stage: Stage, matrix: Tensor) -> bool:
        """True if the layer that fires now is one that was chosen, and fits the budget."""
        number = len(self._fired) + 1
        wanted = self._wanted.selection.wants(number) and number >= self.first
        budget = self._wanted.budget
        full = budget is not None and self._bytes > 0 and self._bytes + matrix.nbytes > budget
        if wanted and not full and not self.rest:
            self._bytes += matrix.nbytes
            return True
        if wanted and not self.rest:
            self.rest = number
        stage.skip()
        return False

    def knows(self, layer: str) -> bool:
        """True if this layer fired."""
        return layer in self._fired

    @property
    def fired(self) -> list[str]:
        """Names of the layers that ran, kept or not, in order."""
        return list(self._fired)

    def keeps(self, layer: str) -> bool:
        """True if it is kept."""
        return self._fired.get(layer) is not None

    def take(self, image_ids: Sequence[str] | None = None, outcome: Outcome | None = None) -> list[AttentionMaps]:
        """The maps of the forward pass since the last take, stage by stage.

        Of each stage those at "weights", then those at "effective" where that differs. A stage is all layers of one
        kind and shape.

        Args:
            image_ids: one per image; "0", "1", ... if None.
            outcome: labels and predictions to travel with them.

        Raises:
            CaptureError: there was no forward pass, some layer stayed silent, nothing in the model is attention
                that can be seen, or no layer has the values asked for: never an empty result.
        """
        self._refuse_silence()
        names = stage_names([key[:2] for key in self._stages], self._towers())
        taken = []
        for name, (key, stage) in zip(names, self._stages.items(), strict=True):
            if not stage.layers:
                continue
            self._room[key] = len(stage.layers)
            taken += stage.maps(name, image_ids, outcome)
        self.forget()
        if self._wanted.values and all(maps.value_vectors is None for maps in taken):
            raise CaptureError("no values can be kept: the maps are of windows, or their V differ in shape by layer.")
        return taken

    def _towers(self) -> list[str]:
        """The names of the towers of the stages; those of class and pooling layers are told apart by themselves."""
        names: dict[StageKey, str] = {}
        for apart in (False, True):
            keys = [key for key in self._stages if (key[0] in ("class", "pool")) == apart]
            names |= zip(keys, tower_names([(key[:-1], key[-1]) for key in keys]), strict=True)
        return [names[key] for key in self._stages]

    def _grid_of(self, layer: str, kind: str, n_tokens: int, guess: Callable[[], TokenGrid | None]) -> TokenGrid:
        """The keys of a layer as perturbation found them; by the model's geometry where nothing was perturbed."""
        place = self.located.places.get(layer)
        grid = guess() if place is None else place.grid
        return grid or unplaced(n_tokens, kind)

    def _known_grid(self, n_tokens: int) -> TokenGrid | None:
        """The grid of a model that states how it cuts images; None of merged tokens, which are fewer."""
        if self._size is None:
            raise CaptureError("the images did not pass the model's patch_embed; run the whole model.")
        grid = token_grid(self._model, self._size)
        return grid if grid.n_tokens == n_tokens else None

    def _refuse_silence(self) -> None:
        silent = [layer.name for layer in self._layers if layer.name not in self._fired]
        if silent or (self._layers and self._size is None):
            raise CaptureError(
                f"{len(silent)} of {len(self._layers)} attention layers never fired: {', '.join(silent[:3])}. "
                "Run the model inside `with record(...)`, once before each take()."
            )
        hidden = {} if self._tracing is None or self._wanted.allow_missing else self._tracing.silent
        known = tuple(f"{layer.name}." for layer in self._layers)
        hidden = {name: what for name, what in hidden.items() if not f"{name}.".startswith(known or "\0")}
        if hidden:
            name, (module, last_use) = next(iter(hidden.items()))
            raise hidden_kernel(name, module, last_use)
        missing = sorted(number for number in self._wanted.selection.layers or () if number > len(self._fired))
        if self._fired and missing:
            raise InputError(f"layer {missing[0]} was chosen, and the model has {len(self._fired)}.")
        if not self._fired:
            ran = self._tracing is not None and self._tracing.n_images
            raise CaptureError(
                f"no attention layer found in {type(self._model).__name__}: "
                + (self._why_none() if ran else "it has not run yet.")
            )

    def _why_none(self) -> str:
        scripted = [name for name, m in self._model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
        if scripted:
            return f"its {scripted[0]} is TorchScript, whose layers cannot be followed; use the model it was made from."
        return "it ran, and nothing it computed was a softmax times values."


def factors_of(product: Product) -> tuple[Tensor, Tensor]:
    """Queries and keys of a layer, [image, head, token, width], from which its map can be made again.

    Raises:
        CaptureError: it cannot.
    """
    if product.factors is None or product.effective.shape[1] != 1:
        raise CaptureError(
            f"{product.layer}: its map is not known to be the softmax of queries times keys and nothing else; it has a "
            "bias, a mask or windows, or is computed or changed step by step. Store maps."
        )
    queries, keys = product.factors
    return queries[:, 0], keys[:, 0]


def _folded(maps: Tensor) -> Tensor:
    """[image, window, head, query, key] -> [image, head, window * query, key]; one window is not copied."""
    return maps.transpose(1, 2).flatten(2, 3)
