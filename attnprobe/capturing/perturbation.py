"""Proofs of whose a map is and where its tokens are, by changing the images a little and seeing what moves.

The certificate's two images a and b are run as [a, b], as [a changed, b], and as two more changes of a. What moves in
the second pass belongs to the first image, and nothing of the second may move; how the tokens of a respond to the
changes says where they are (see `places`). Two passes of two images, beside the one that they are compared with.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from attnprobe.capturing.call_stack import Call
from attnprobe.capturing.hooks import block_names, known_layers, token_grid
from attnprobe.capturing.kinds import TokenPlacement, kind_of
from attnprobe.capturing.places import Located, Places, Responses, changes, contradicts, places, responses
from attnprobe.capturing.product import Product
from attnprobe.capturing.tracing import Tracing
from attnprobe.core.errors import CaptureError
from attnprobe.core.maps import TokenGrid

OTHERS = 0.6
"""Change of the second image's values, relative to that of the first one's, which only the first image's change can
explain; without any mixing it is zero, or the rounding of a scale that a whole batch shares."""


@dataclass(slots=True)
class _Pass:
    """Values and block outputs of one forward pass, by the names of layers and blocks."""

    values: dict[str, Tensor]
    products: dict[str, Product]
    outputs: dict[str, Tensor]


def locate(model: nn.Module, pixels: Tensor) -> Located:
    """The places of tokens and the image axes of a model in eval mode, for images like `pixels` [image, ..., row, col].

    Raises:
        CaptureError: the maps filed under one image change with another.
    """
    if pixels.ndim < 4 or not pixels.is_floating_point():
        return Located()
    first, others = pixels[:1], pixels[1:2]
    down, up, right = (changed[None] for changed in changes(pixels[0]))
    base = _observed(model, torch.cat([first, others]))
    moved = _observed(model, torch.cat([down, others]))
    rest = _observed(model, torch.cat([up, right]) if len(others) else up)
    last = rest if len(others) else _observed(model, right)
    comparable = len(others) > 0 and not _shares_scales(model)
    if comparable:
        _refuse_mixing(base, moved)
    size = (pixels.shape[-2], pixels.shape[-1])
    of_stage: dict[tuple[object, ...], Places] = {}
    keys: dict[str, tuple[object, ...]] = {}
    channels: set[tuple[object, ...]] = set()
    known = {layer.name: layer for layer in known_layers(model)}
    placement = TokenPlacement.of(model)
    kinds: dict[str, str] = {}
    for layer, product in base.products.items():
        passes = [seen.values.get(layer) for seen in (base, moved, rest, last)]
        kind = kind_of(product)
        key = (kind, *product.effective.shape[1:], product.tower)
        if key not in of_stage:
            guess = token_grid(model, size) if layer in known else _guess(placement, product, kind, size)
            of_stage[key] = _places(kind, passes, size, guess, placement.prefix, bool(len(others)))
            if kind == "self" and of_stage[key].status != "proved" and _are_channels(passes, size, bool(len(others))):
                of_stage[key] = _places("channel", passes, size, guess, placement.prefix, bool(len(others)))
                channels.add(key)
        elif kind == "self" and (grid := of_stage[key].grid) and _moved_on(passes, grid, bool(len(others))):
            of_stage[key] = Places("unknown", f"tokens of {layer} are not where those of its first layer are")
        keys[layer] = key
        if key in channels:
            kinds[layer] = "channel"
    found = {layer: of_stage[key] for layer, key in keys.items()}
    return Located(found, _image_axes(base, moved) if comparable else {}, comparable, kinds)


def _observed(model: nn.Module, pixels: Tensor) -> _Pass:
    """One forward pass, with V of every layer and the output of the block around it."""
    seen = _Pass({}, {}, {})
    blocks: set[str] = set()

    def keep(product: Product) -> None:
        if product.value is not None:
            seen.values[product.layer] = product.value
        seen.products[product.layer] = _light(product)
        names = {call.name for call in product.calls}
        blocks.add(next((name for name in block_names(product.layer) if name in names), ""))

    def keep_output(call: Call, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) and out else out
        if call.name in blocks and isinstance(out, Tensor) and out.ndim == 3:
            seen.outputs[call.name] = out

    with Tracing(model, keep, on_leave=keep_output, values=True, allow_missing=True):
        model(pixels)
    return seen


def _light(product: Product) -> Product:
    """The product without its map's memory: an expanded tensor of the same shape."""
    shape = product.effective.shape
    empty = product.effective.new_empty(()).expand(shape)
    none = dict.fromkeys(("weights", "value", "error_of", "scores", "factors"))
    return replace(product, effective=empty, **none)


def _guess(placement: TokenPlacement, product: Product, kind: str, size: tuple[int, int]) -> TokenGrid | None:
    n_windows, n_keys = product.effective.shape[1], product.effective.shape[4]
    n_tokens = n_windows * n_keys
    if kind == "self" and product.pads(n_tokens):
        return None
    return placement.grid(n_tokens, size)


def _places(
    kind: str, passes: list[Tensor | None], size: tuple[int, int], guess: TokenGrid | None, prefix: tuple[str, ...],
    two: bool,
) -> Places:  # fmt: skip
    """Places of the keys of a layer from its V [image, window, head, key, width] in the four passes."""
    values = [value for value in passes if value is not None]
    if kind == "channel" or len(values) < 4 or any(value.shape != values[0].shape for value in values[:2]):
        why = "its keys are channels" if kind == "channel" else "its values are hidden"
        return Places("assumed", why, guess) if guess else Places("unknown", why)
    found = _responses(values, two)
    if kind in ("window", "grid"):
        return _of_windows(found, guess)
    return places(found, size, guess, prefix)


def _responses(passes: Sequence[Tensor], two: bool) -> Responses:
    """Responses of the keys of the first image in the four passes; the last has it second if there are two."""
    base, down, up = (_features(value[0]) for value in passes[:3])
    return responses(base, down, up, _features(passes[3][1 if two else 0]))


def _are_channels(passes: list[Tensor | None], size: tuple[int, int], two: bool) -> bool:
    """True if the columns of a square V are tokens in their places, so that its keys are channels."""
    values = [value.mT for value in passes if value is not None]
    if len(values) < 4 or values[0].shape[-1] != values[0].shape[-2]:
        return False
    return places(_responses(values, two), size, None).status == "proved"


def _moved_on(passes: list[Tensor | None], grid: TokenGrid, two: bool) -> bool:
    """True if the tokens of a later layer are elsewhere than in the stage's first: sorted, exchanged or merged."""
    values = [value for value in passes if value is not None]
    return len(values) == 4 and bool(grid.rows) and contradicts(_responses(values, two), grid)


def _features(value: Tensor) -> Tensor:
    """[window, head, key, width] -> [window * key, head * width]."""
    return value.transpose(1, 2).flatten(0, 1).flatten(1)


def _of_windows(found: Responses, guess: TokenGrid | None) -> Places:
    """The tokens of all windows fill the grid, each patch once."""
    if guess is None or not guess.rows or not bool(found.moved.all()):
        return Places("unknown", "where its windows are does not show")
    row = (found.row * guess.rows - 0.5).round().clamp(0, guess.rows - 1)
    col = (found.col * guess.cols - 0.5).round().clamp(0, guess.cols - 1)
    if len((row * guess.cols + col).unique()) == len(row):
        return Places("proved", "", guess)
    return Places("assumed", "its tokens already depend on much of the image, so their places do not show", guess)


def _shares_scales(model: nn.Module) -> bool:
    """True if layers round activations by a scale of the whole batch, so that each image moves with every other."""
    return any(type(module).__module__.startswith("torch.ao.nn.quantized.dynamic") for module in model.modules())


def _refuse_mixing(base: _Pass, moved: _Pass) -> None:
    for layer, before in base.values.items():
        after = moved.values.get(layer)
        if after is None or after.shape != before.shape or len(before) != 2:
            continue
        own, other = ((after[i] - before[i]).abs().max().item() for i in (0, 1))
        if other > OTHERS * own and other > 0:
            raise CaptureError(
                f"{layer}: what would be filed under the second image changes when only the first one does, so its "
                "rows are not one image's. Does the model put heads or windows before images, views of images into one "
                "batch (test-time augmentation), or join images? Capture the model inside, on each view."
            )


def _image_axes(base: _Pass, moved: _Pass) -> dict[str, int | None]:
    """Which of the first two axes of each block's output is the image's: the one along which only entry 0 moves."""
    axes: dict[str, int | None] = {}
    for name, before in base.outputs.items():
        after = moved.outputs.get(name)
        if after is None or after.shape != before.shape:
            axes[name] = None
            continue
        change = (after - before).abs().amax(-1)
        axes[name] = next((axis for axis in (0, 1) if _first_alone(change, axis)), None)
    return axes


def _first_alone(change: Tensor, axis: int) -> bool:
    """True if an axis of length 2 changes at entry 0 and not at entry 1."""
    if change.shape[axis] != 2:
        return False
    first, second = (part.max().item() for part in change.unbind(axis))
    return first > 0 and second <= OTHERS * first
