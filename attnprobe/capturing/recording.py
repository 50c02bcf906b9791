"""Forward passes whose attention is recorded, each in a context of its own."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from attnprobe.capturing.hooks import (
    AttentionLayer,
    has_other_attention,
    is_differential,
    known_layers,
    unfused,
    unwrap,
)
from attnprobe.capturing.recorder import Recorder, Wanted
from attnprobe.capturing.selection import Selection
from attnprobe.capturing.stages import BufferPool
from attnprobe.capturing.tracing import Tracing
from attnprobe.core.errors import InputError
from attnprobe.core.sites import SITES, Site


@dataclass(eq=False)
class Recording(Wanted):
    """The recording of a model's attention; the model is touched only while one of its passes runs.

    `run` makes one forward pass recordable and leaves the process and the model as they were. For a pass of your own,
    with gradients for instance, it is a context manager: `with record(m) as r: m(x); maps = r.take()`.

    Args:
        model: any module; compiled and parallel wrappers are unwrapped, and nothing runs compiled meanwhile. Its
            modules are found now: weights may change between two passes, modules may not be exchanged.
        sites: some of "weights", "effective" and "scores". Where a layer multiplies V with its softmax itself, the
            first two are one matrix, delivered once as site "weights" with `is_effective=True`. Scores are the logits
            of the softmax: scaled, and with every bias and mask, -inf where a query may not attend.
        tokens: keep the output of each layer's block, too, where that is [image, token, width].
        values: keep V, too, where maps are of the whole image and not of windows.
        factors: keep queries and keys, too, of maps that are the softmax of their product and nothing else.
        watch: trace every call to PyTorch, which finds the attention of unknown code; True: of known code, too; None:
            where it is needed, and for scores and factors.
        unwindow: maps of windows as maps of the whole image, zero outside the window; else [image, layer, head,
            window * query, key], where row w * Q + i is query i of window w.
        pool: where maps get their memory.
        selection: layers, heads and queries to keep.
        budget: bytes of maps to keep of one forward pass, and at least one layer; then `Recorder.rest` is the number of
            the first layer left out, and the next pass begins there. No limit if None.
        allow_missing: go on where blocks show no map although their siblings do; the certificate names them.
        inputs: further keyword arguments of the model in `run`; a function is called with the pixels.
        amp: type of autocast in `run`, such as torch.bfloat16; the model's own precision if None.

    Attributes:
        recorder: holds the maps of a pass until `take()`, which comes before the next pass.

    Raises:
        CaptureError: (by `Recorder.take`) no attention layer can be read.
        InputError: an unknown site, or another selection than a `Selection`.
    """

    model: nn.Module
    sites: Sequence[Site] | Site = "effective"
    _: KW_ONLY
    watch: bool | None = None
    pool: BufferPool = field(default_factory=BufferPool)
    inputs: Mapping[str, Any] = field(default_factory=dict)
    amp: torch.dtype | None = None

    def __post_init__(self) -> None:
        self.sites = (self.sites,) if isinstance(self.sites, str) else tuple(self.sites)
        if not self.sites or not set(self.sites) <= set(SITES):
            raise InputError(f"sites must be some of {', '.join(SITES)}, got {self.sites!r:.60}.")
        if not isinstance(self.selection, Selection):
            raise InputError(
                f"a selection is attnprobe.capturing.selection.Selection(layers=(1, 2)), got {self.selection!r:.60}."
            )
        self.model = unwrap(self.model)
        watch = True if self.factors or "scores" in self.sites else self.watch
        self._layers, watched = layers_to_hook(self.model, watch)
        self.recorder = Recorder(self.model, self._layers, self.sites, self, self.pool)
        self._modules = list(self.model.modules())  # found once: a pass of a small model is as short as this takes
        self._differential = [module for module in self._modules if is_differential(module)]
        self._tracing = self._traced() if watched or self.values else None

    def _traced(self) -> Tracing:
        """The tracing that reports calls and products to the recorder."""
        extras = {"value": self.values, "scores": "scores" in self.sites, "factors": self.factors}
        tracing = Tracing(
            self.model,
            self.recorder.see_product,
            on_enter=self.recorder.see_call,
            on_leave=self.recorder.see_return,
            extras=[name for name, wanted in extras.items() if wanted],
            allow_missing=self.allow_missing,
        )
        self.recorder.follow(tracing)
        return tracing

    def run(self, pixels: Tensor) -> Any:
        """The model's output of one forward pass in eval mode, which leaves its maps in `recorder`."""
        with evaluating(self._modules), computing(pixels.device, self.amp), feeding(self.model, self.inputs), self:
            return self.model(pixels)

    def __enter__(self) -> Recorder:
        with ExitStack() as stack:
            self._enter(stack)
            self._entered = stack.pop_all()  # all or, after an exception, none
        return self.recorder

    def __exit__(self, *exc: Any) -> None:
        self._entered.__exit__(*exc)

    def _enter(self, stack: ExitStack) -> None:
        """Hooks, switches and modes of one pass, in the order in which each can rely on those before.

        Layers are unfused first, since the hook on a dropout only fires where the softmax is explicit. Tracing comes
        last, and so is left first: it would see the work of the others as calls of the model.
        """
        recorder = self.recorder
        stack.enter_context(unfused(self._differential, self._layers))
        stack.enter_context(torch.compiler.set_stance("force_eager"))  # compiled code was traced without hooks
        if self._layers:
            patches: nn.Module = self.model.get_submodule("patch_embed")
            see = patches.register_forward_pre_hook(lambda _m, args: recorder.see_pixels(args[0]))
            stack.callback(see.remove)
        for layer in self._layers:
            for handle in layer.listen(partial(recorder.keep, layer.name)):
                stack.callback(handle.remove)
            if self.tokens:
                handle = layer.block.register_forward_hook(partial(recorder.keep_tokens, layer.name))
                stack.callback(handle.remove)
        if self._tracing is not None:
            stack.enter_context(self._tracing)


record = Recording
"""The name for a user's own passes: `with record(model) as recorder`."""


def layers_to_hook(model: nn.Module, watch: bool | None) -> tuple[list[AttentionLayer], bool]:
    """The layers read by hooks, and whether the model is traced besides; `watch` as in `Recording`."""
    layers = [] if watch else known_layers(model)
    return layers, has_other_attention(model, layers) if watch is None else watch


@contextmanager
def computing(device: torch.device, amp: torch.dtype | None = None) -> Iterator[None]:
    """No gradients, the model's own precision or that of autocast to `amp`, nothing compiled.

    Not `inference_mode`: a table that the model computes in this pass and keeps, of cosines and sines for instance,
    could never take part in training again.
    """
    precision = torch.autocast(device.type, dtype=amp, enabled=amp is not None)
    with torch.no_grad(), precision, torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Eval mode; each module's own mode is put back.

    By the flags alone: `eval()` of some modules also changes weights, and their `train()` would have to undo that.
    """
    training = [module for module in modules if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def feeding(model: nn.Module, inputs: Mapping[str, Any]) -> Iterator[None]:
    """Within, forward passes of the model get these keyword arguments, too; a function is called with the pixels."""
    if not inputs:
        yield
        return

    def feed(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        given = {name: value(args[0]) if callable(value) else value for name, value in inputs.items()}
        moved = {name: x.to(args[0].device) if isinstance(x, Tensor) else x for name, x in given.items()}
        return args, kwargs | moved

    handle = model.register_forward_pre_hook(feed, prepend=True, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
