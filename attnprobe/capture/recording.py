"""How are maps taken out of a forward pass without changing it?"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from attnprobe.capture.buffers import BufferPool
from attnprobe.capture.layers import known_layers, unfused, unheard, unwrap
from attnprobe.capture.recorder import SITES, Recorder
from attnprobe.capture.selection import Selection
from attnprobe.capture.watch import watching
from attnprobe.core.tap import Site


@contextmanager
def record(
    model: nn.Module,
    sites: Sequence[Site] | Site = "effective",
    *,
    tokens: bool = False,
    values: bool = False,
    factors: bool = False,
    watch: bool | None = None,
    unwindow: bool = False,
    pool: BufferPool | None = None,
    selection: Selection | None = None,
    budget: int | None = None,
) -> Iterator[Recorder]:
    """Listen to a model's attention: `with record(m) as r: m(x); maps = r.take()`.

    Args:
        model: any module; compiled and parallel wrappers are looked into (a compiled model runs uncompiled meanwhile).
        sites: some of "weights", "effective" and "scores". Where a layer multiplies V with its softmax itself, the
            first two are one matrix, delivered once as site "weights" with `is_effective=True`. Scores are what the
            softmax is taken of: scaled, and with every bias and mask, -inf where a query may not look.
        tokens: keep the output of each layer's block, too, where that is [image, token, width].
        values: keep what each map multiplies, too, where maps are of the whole picture and not of windows.
        factors: keep queries and keys, too, of maps that are the softmax of their product and nothing else.
        watch: follow every call to PyTorch, which finds the attention of unknown code; True: of known code, too; None:
            where it is needed, and for scores and factors.
        unwindow: maps of windows as maps of the whole picture, zero outside the window; else [image, layer, head,
            window * query, key], where row w * Q + i is query i of window w.
        pool: where maps get their memory; one of this recording's own if None.
        selection: layers, heads and queries to keep; all if None.
        budget: bytes of maps to keep of one forward pass, and at least one layer; then `Recorder.rest` is the number of
            the first layer left out, and the next pass begins there. No limit if None.

    Hooks and switches are removed at the end, also after an exception.

    Raises:
        CaptureError: no attention layer can be read.
        ValueError: an unknown site.
    """
    sites = (sites,) if isinstance(sites, str) else tuple(sites)
    if not sites or not set(sites) <= set(SITES):
        raise ValueError(f"sites must be some of {SITES}, got {sites}.")
    inner = unwrap(model)
    watch = True if factors or "scores" in sites else watch
    layers = [] if watch else known_layers(inner)
    watch = watch if watch is not None else unheard(inner, layers)
    keeping = (tokens, values, factors, unwindow, pool or BufferPool(), selection or Selection(), budget)
    recorder = Recorder(inner, layers, sites, *keeping)
    with ExitStack() as stack:
        stack.enter_context(unfused(layers))
        if inner is not model:
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        if layers:
            see = inner.patch_embed.register_forward_pre_hook(lambda _m, args: recorder.see_pixels(args[0]))
            stack.callback(see.remove)
        for layer in layers:
            for handle in layer.listen(partial(recorder.keep, layer.name)):
                stack.callback(handle.remove)
            if tokens:
                handle = layer.block.register_forward_hook(partial(recorder.keep_tokens, layer.name))
                stack.callback(handle.remove)
        if watch or values:
            told: dict[str, Any] = {"on_enter": recorder.see_call, "on_leave": recorder.see_return}
            told |= {"values": values, "scores": "scores" in sites, "factors": factors}
            recorder._watch = stack.enter_context(watching(inner, recorder.see_product, **told))
        yield recorder
