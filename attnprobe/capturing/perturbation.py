"""Proofs of whose a map is and where its tokens are, by changing the images a little and seeing what moves.

The certificate's two images a and b are run as [a, b], as [a changed, b], and as two more changes of a. What moves in
the second pass belongs to the first image, and nothing of the second may move; how the tokens of a respond to the
changes says where they are (see `places`). Two passes of two images, beside the one that they are compared with. Only
where tokens turn out to form no complete grid do log2(patches) + 4 passes follow: see `scattered`.
"""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attnprobe.capturing.call_stack import Call
from attnprobe.capturing.hooks import block_names, known_layers, token_grid
from attnprobe.capturing.kinds import TokenPlacement, kind_of
from attnprobe.capturing.places import Located, Places, Responses, changes, contradicts, places, responses, share_places
from attnprobe.capturing.product import Product
from attnprobe.capturing.scattered import ANEW, coded_images, patch_sizes, read_positions, trial_images, why_not_alone
from attnprobe.capturing.tracing import Tracing
from attnprobe.core.errors import CaptureError, option
from attnprobe.core.grid import TokenGrid

TRIES = 3
"""Sizes of patches that are tried of a model that does not say its own."""

OTHERS = 0.2
"""Change of the second image's values, relative to that of the first one's, which only the first image's change can
explain; without any mixing it is zero, or the rounding of a scale that a whole batch shares."""

NOTHING = 1e-4
"""Change of the second image's values by another image, relative to the first one's by a little noise, that is none."""

BY_ROUNDING = 0.02
"""Of the largest value, by which V of an image may differ from the same image's in a batch of another size."""

BY_OTHERS = 1e-3
"""The same in a batch of equal size, with others beside it; without any mixing that is zero."""


@dataclass(slots=True)
class _Pass:
    """Values of one forward pass and, if asked for, products and block outputs; by the names of layers and blocks."""

    values: dict[str, Tensor] = field(default_factory=dict)
    products: dict[str, Product] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)


def locate(model: nn.Module, pixels: Tensor, many: bool = False) -> Located:
    """The places of tokens and the image axes of a model in eval mode, for images like `pixels` [image, ..., row, col].

    Args:
        many: more than two images will be captured at once, so their order is tried with four.

    Raises:
        CaptureError: the maps filed under one image change with another, or are another's in a batch of four.
    """
    if pixels.ndim < 4 or not pixels.is_floating_point():
        return Located()
    passes: list[torch.Size] = []
    counting = model.register_forward_pre_hook(lambda _model, args: passes.append(args[0].shape))
    try:
        found = _located(model, pixels, many)
    finally:
        counting.remove()
    return replace(found, passes=len(passes))


def _located(model: nn.Module, pixels: Tensor, many: bool) -> Located:
    first, others = pixels[:1], pixels[1:2]
    down, up, right = (changed[None] for changed in changes(pixels[0]))
    base = _observed(model, torch.cat([first, others]), whole=True)
    moved = _observed(model, torch.cat([down, others]), whole=True)
    rest = _observed(model, torch.cat([up, right]) if len(others) else up)
    last = rest if len(others) else _observed(model, right)
    comparable = len(others) > 0 and not _shares_scales(model)
    _refuse_across_images(base, min(2, len(pixels)))
    if comparable and (mixed := _mixed(base, moved)):
        again = _observed(model, torch.cat([first, others]))
        if any(not torch.equal(value, again.values.get(layer, value[:0])) for layer, value in base.values.items()):
            return Located(dict.fromkeys(base.products, Places("unknown", ANEW)))
        raise CaptureError(
            f"{mixed}: what would be filed under the second image changes when only the first one does, so its rows "
            "are not one image's. Does the model put heads or windows before images, views of images into one batch "
            "(test-time augmentation), or join images? Capture the model inside, on each view."
        )
    if comparable and (unmoved := _never_second(base, moved, rest)):
        raise CaptureError(
            f"{unmoved}: what would be filed under the second image does not change with it, so its rows are those of "
            "others. Does the model add images of its own, to pad the batch for instance? Capture the model inside."
        )
    if many and comparable:
        more = [down, right, others.flip(-1), first.flip(-2)]
        alone = [(base, 0), (base, 1), (moved, 0), (rest, 1)]
        _refuse_other_images(model, torch.cat([first, others, *more]), alone)
    search = _Search(model, pixels[:2], TokenPlacement.of(model), {layer.name for layer in known_layers(model)})
    of_stage: dict[tuple[object, ...], tuple[str, Places]] = {}
    keys: dict[str, tuple[object, ...]] = {}
    before: dict[tuple[object, ...], Responses | None] = {}
    windows: dict[str, Tensor] = {}
    for layer, product in base.products.items():
        passes = [value for seen in (base, moved, rest, last) if (value := seen.values.get(layer)) is not None]
        kind = kind_of(product)
        key = keys[layer] = (kind, *product.effective.shape[1:], product.tower)
        if key not in of_stage:
            of_stage[key] = search.first_layer(layer, product, kind, passes)
        now = search.responses_of(passes) if kind in ("self", "window", "grid") else None
        if now is not None and kind != "self":
            if bool(now.moved.all()):
                windows[layer] = torch.stack([now.row, now.col])
            continue
        grid = of_stage[key][1].grid
        if now is not None and grid and grid.rows and key in before and contradicts(now, grid, before[key]):
            why = f"tokens of {layer} are not where those of its first layer are"
            of_stage[key] = (of_stage[key][0], Places("unknown", why))
        before[key] = now
    found = {layer: of_stage[key] for layer, key in keys.items()}
    return Located(
        {layer: place for layer, (_, place) in found.items()},
        _image_axes(base, moved) if comparable else {},
        comparable,
        {layer: kind for layer, (kind, _) in found.items() if kind != keys[layer][0]},
        _parallel(list(base.products.values())),
        windows=windows,
    )


@dataclass(frozen=True, slots=True)
class _Search:
    """The search for the places of tokens in a model.

    Attributes:
        pixels: the one or two images of the certificate, of which the first is changed.
        placement: what the model's modules say.
        known: names of layers of models that state how they cut images.
    """

    model: nn.Module
    pixels: Tensor
    placement: TokenPlacement
    known: Collection[str]

    @property
    def size(self) -> tuple[int, int]:
        return (self.pixels.shape[-2], self.pixels.shape[-1])

    def first_layer(self, layer: str, product: Product, kind: str, passes: Sequence[Tensor]) -> tuple[str, Places]:
        """The kind and the places of the first layer of a stage from its V in the four passes."""
        guess = self._guess(layer, product, kind)
        if kind == "channel" or len(passes) < 4 or passes[0].shape != passes[1].shape:
            why = "its keys are channels" if kind == "channel" else "its values are hidden"
            return kind, Places("assumed", why, guess) if guess else Places("unknown", why)
        found = self._responses(passes)
        if kind in ("window", "grid"):
            return kind, _of_windows(found, guess)
        place = places(found, self.size, guess, self.placement.prefix, self.placement.overlapping)
        if kind == "self" and place.status != "proved" and self._are_channels(passes):
            return self.first_layer(layer, product, "channel", passes)
        if place.status == "unknown":
            place = self._scattered(layer, found, _features(passes[0][0])) or place
        if place.status == "proved" and place.grid is not None and layer not in self.known:
            place = replace(place, grid=self._named(layer, place.grid, _features(passes[0][0])))
        return kind, place

    def responses_of(self, passes: Sequence[Tensor]) -> Responses | None:
        """Responses of the keys in the four passes; None where V is hidden or its shape changes with the pixels."""
        return None if len(passes) < 4 or passes[0].shape != passes[1].shape else self._responses(passes)

    def _guess(self, layer: str, product: Product, kind: str) -> TokenGrid | None:
        n_tokens = product.effective.shape[1] * product.effective.shape[4]
        if layer in self.known:
            grid = token_grid(self.model, self.size)
            return grid if grid.n_tokens == n_tokens else None  # of merged tokens there are fewer
        return None if kind == "self" and product.pads(n_tokens) else self.placement.grid(n_tokens, self.size)

    def _responses(self, passes: Sequence[Tensor]) -> Responses:
        """Responses of the keys of the first image in the four passes; the last has it second if there are two."""
        base, down, up = (_features(value[0]) for value in passes[:3])
        return responses(base, down, up, _features(passes[3][len(self.pixels) - 1]))

    def _are_channels(self, passes: Sequence[Tensor]) -> bool:
        """True if the columns of a square V, or its heads, are tokens in places of their own, and its keys channels."""
        axes = [(-3, -2)] if passes[0].shape[-3] > 1 else []
        axes += [(-2, -1)] if passes[0].shape[-1] == passes[0].shape[-2] else []
        turned = ([value.transpose(*pair) for value in passes] for pair in axes)
        return any(places(self._responses(some), self.size, None).status == "proved" for some in turned)

    def _scattered(self, layer: str, found: Responses, base: Tensor) -> Places | None:
        """Places of tokens that are no complete grid, of the likeliest size of patches; None without any such size."""
        strides = [(int(stem.stride[0]), int(stem.stride[1])) for stem in self.placement.stems]
        sizes = patch_sizes(found, self.size, strides) if self.pixels.ndim == 4 else []
        why = ""
        for patch in sizes[: 1 if strides else TRIES]:
            # One pass rules out tokens that see more than a patch, as in hybrids of convolutions and attention.
            more = why_not_alone(base, self._values(layer, trial_images(self.pixels[0], patch)))
            if not more:
                passes = [self._values(layer, images) for images in coded_images(self.pixels[0], patch)]
                return read_positions(passes, self.size, patch, self.placement.prefix)
            why = why or more
        return Places("unknown", why) if why else None

    def _named(self, layer: str, grid: TokenGrid, base: Tensor) -> TokenGrid:
        """The grid with each prefix token named after the parameter that moves it, where there are several kinds."""
        kinds = {name.rstrip("0123456789") for name in grid.prefix}
        parameters = {kind: name for kind, name in self.placement.parameters.items() if kind in kinds}
        if len(parameters) < 2 or any(parameter.is_meta for parameter in self.model.parameters()):
            return grid
        names = [f"prefix{i}" for i in range(grid.n_prefix)]
        for kind, parameter in parameters.items():
            values = _observed(self.model, self.pixels, layer, moving=parameter).values[layer]
            moved = (_features(values[0]) - base).abs().amax(-1)[grid.prefix_tokens] > 0
            found = moved.nonzero().flatten().tolist()
            for number, i in enumerate(found):
                names[i] = f"{kind}{number}" if kind == "reg" else kind
        return replace(grid, prefix=tuple(names))

    def _values(self, layer: str, images: Tensor) -> Tensor:
        """[image, key, feature], V of one layer; as many images at once as the certificate has."""
        seen = [_observed(self.model, part, layer).values[layer] for part in images.split(len(self.pixels))]
        return torch.stack([_features(value) for value in torch.cat(seen)])


def _parallel(products: Sequence[Product]) -> tuple[str, ...]:
    """Layers that run beside the one before them: both are in one list of modules, and given the same tokens."""
    found = []
    for one, other in itertools.pairwise(products):
        given = {_given(call): call.name for call in one.calls[1:] if call.given is not None}
        beside = ((given.get(_given(call), call.name), call.name) for call in other.calls[1:])
        # Class attention is given the same patches each time, and is not parallel.
        if one.tower == other.tower and kind_of(other) == "self":
            split = [(a.rpartition("."), b.rpartition(".")) for a, b in beside if a != b]
            if any(a[0] == b[0] and a[2].isdigit() and b[2].isdigit() for a, b in split):
                found.append(other.layer)
    return tuple(found)


def _given(call: Call) -> tuple[int, int]:
    """The tokens that a module was given; those that a residual is added to in place become others."""
    return id(call.given), call.version


def _observed(model: nn.Module, pixels: Tensor, only: str = "", moving: str = "", whole: bool = False) -> _Pass:
    """One forward pass, with V of every layer.

    Args:
        only: the one layer of which V is kept; all if "".
        moving: a parameter that is another one in this pass.
        whole: keep the products, too, and the output of the block around each; they take several times the memory.
    """
    seen = _Pass()
    blocks: set[str] = set()

    def keep(product: Product) -> None:
        if product.value is not None and only in ("", product.layer):
            seen.values[product.layer] = product.value.clone()  # often a view of queries, keys and values in one
        if not whole:
            return
        seen.products[product.layer] = _light(product)
        names = {call.name for call in product.calls}
        blocks.add(next((name for name in block_names(product.layer) if name in names), ""))

    def keep_output(call: Call, out: Any) -> None:
        out = out[0] if isinstance(out, tuple) and out else out
        if call.name in blocks and isinstance(out, Tensor) and out.ndim == 3:
            seen.outputs[call.name] = out

    with Tracing(model, keep, on_leave=keep_output, extras={"value"}, allow_missing=True):
        if moving:
            parameter = dict([*model.named_parameters(), *model.named_buffers()])[moving]
            functional_call(model, {moving: parameter + 0.1 * torch.ones_like(parameter).cumsum(-1).sin()}, (pixels,))
        else:
            model(pixels)
    return seen


def _light(product: Product) -> Product:
    """The product without its map's memory: an expanded tensor of the same shape."""
    shape = product.effective.shape
    empty = product.effective.new_empty(()).expand(shape)
    none = dict.fromkeys(("weights", "value", "error_of", "scores", "factors"))
    return replace(product, effective=empty, **none)


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
    if share_places(found.row, found.col):
        return Places("unknown", "several of its tokens are at one place each, as those of a video's frames are")
    return Places("assumed", "its tokens already depend on much of the image, so their places do not show", guess)


def _shares_scales(model: nn.Module) -> bool:
    """True if layers round activations by a scale of the whole batch, so that each image moves with every other."""
    return any(type(module).__module__.startswith("torch.ao.nn.quantized.dynamic") for module in model.modules())


def _mixed(base: _Pass, moved: _Pass) -> str:
    """The first layer whose V of the second image changes with the first image; "" if there is none."""
    for layer, before in base.values.items():
        after = moved.values.get(layer)
        if after is None or after.shape != before.shape or len(before) != 2:
            continue
        own, other = ((after[i] - before[i]).abs().max().item() for i in (0, 1))
        if other > OTHERS * own and other > 0:
            return layer
    return ""


def _refuse_across_images(base: _Pass, n_images: int) -> None:
    """Raise if V of a layer is not one row of windows per image, as of attention from image to image."""
    for layer, values in base.values.items():
        if len(values) != n_images:
            raise CaptureError(
                f"{layer} multiplies {len(values)} maps of {values.shape[-2]} keys for {n_images} images: it attends "
                "across images (nn.MultiheadAttention takes [token, image, width] unless batch_first=True), and no map "
                "is of one image."
            )


def _never_second(base: _Pass, moved: _Pass, rest: _Pass) -> str:
    """The first layer of which V of the first image moves with that, and V of the second with neither; "" for none.

    Args:
        rest: the pass in which both images are others.
    """
    for layer, before in base.values.items():
        first, second = (seen.values.get(layer) for seen in (moved, rest))
        if first is None or second is None or not before.shape == first.shape == second.shape:
            continue
        own = (first[0] - before[0]).abs().max().item()
        if (second[1] - before[1]).abs().max().item() < NOTHING * own:
            return layer
    return ""


def _refuse_other_images(model: nn.Module, pixels: Tensor, alone: Sequence[tuple[_Pass, int]]) -> None:
    """Raise if what a model computes of an image depends on its place or on the other images in a batch of four.

    A model that deals images out, every second one to each half for instance, keeps two in order, and not four. One
    that normalises pixels by the batch, or subtracts one image from the others, gives no image maps of its own.

    Args:
        pixels: four images, and two more in place of the last two. All but the second are changes of the first.
        alone: for each of the four the pass of two that it was in, and its row there.
    """
    try:
        together, beside = (_observed(model, pixels[which]).values for which in ([0, 1, 2, 3], [0, 1, 4, 5]))
    except (RuntimeError, AssertionError, ValueError, TypeError):  # no room for four, or a model of so many and no more
        return
    for layer, values in together.items():
        rows = [seen.values[layer][row] for seen, row in alone if layer in seen.values]
        others = beside.get(layer)
        if others is None or others.shape != values.shape or [row.shape for row in rows] != [x.shape for x in values]:
            continue
        size = values.abs().max().item()
        own, *elsewhere = ((values[1] - rows[i]).abs().max().item() for i in (1, 0, 2, 3))
        if own > BY_ROUNDING * size >= min(elsewhere):
            raise CaptureError(
                f"{layer}: of four images at once, what would be filed under one is another's, so the model changes "
                f"the order of images inside. Capture with {option('batch-size', 2)}."
            )
        if (values[:2] - others[:2]).abs().max().item() > BY_OTHERS * size:
            raise CaptureError(
                f"{layer}: what it computes of one image depends on the other images of a batch, so no map is of one "
                "image alone. Does the model normalise by the batch, or compare images? Capture the model inside."
            )


def _image_axes(base: _Pass, moved: _Pass) -> dict[str, int | None]:
    """The image axis among the first two of each block's output: the one along which only entry 0 moves."""
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
