"""Proofs of whose a map is and where its tokens are, by changing the images a little and seeing what moves.

The certificate's two images a and b are run as [a, b], as [a changed, b], and as two more changes of a. What moves in
the second pass belongs to the first image, and nothing of the second may move; in the third the second must (see
`whose`). How the tokens of a respond to the changes says where they are (see `places`). Two passes of two images,
beside the one that they are compared with, and two of four where more than two are captured at once. Only where tokens
turn out to form no complete grid do log2(patches) + 4 passes follow: see `scattered`.
"""

import itertools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from attnprobe.capturing.call_stack import Call
from attnprobe.capturing.hooks import known_layers, token_grid
from attnprobe.capturing.kinds import TokenPlacement, kind_of
from attnprobe.capturing.passes import observed
from attnprobe.capturing.places import (
    Located,
    Places,
    Responses,
    changes,
    contradicts,
    of_merged,
    places,
    responses,
    share_places,
)
from attnprobe.capturing.product import Product
from attnprobe.capturing.scattered import ANEW, coded_images, patch_sizes, read_positions, trial_images, why_not_alone
from attnprobe.capturing.towers import Tower
from attnprobe.capturing.whose import (
    image_axes,
    mixed,
    never_second,
    refuse_across_images,
    refuse_other_images,
    shares_scales,
)
from attnprobe.core.errors import CaptureError
from attnprobe.core.grid import TokenGrid

TRIES = 3
"""Sizes of patches that are tried of a model that does not say its own."""


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
    base = observed(model, torch.cat([first, others]), whole=True)
    moved = observed(model, torch.cat([down, others]), whole=True)
    rest = observed(model, torch.cat([up, right]) if len(others) else up)
    last = rest if len(others) else observed(model, right)
    comparable = len(others) > 0 and not shares_scales(model)
    refuse_across_images(base, min(2, len(pixels)))
    if comparable and (layer := mixed(base, moved)):
        again = observed(model, torch.cat([first, others]))
        if any(not torch.equal(value, again.values.get(layer, value[:0])) for layer, value in base.values.items()):
            return Located(dict.fromkeys(base.products, Places("unknown", ANEW)))
        raise CaptureError(
            f"{layer}: what would be filed under the second image changes when only the first one does, so its rows "
            "are not one image's. Does the model put heads or windows before images, views of images into one batch "
            "(test-time augmentation), or join images? Capture the model inside, on each view."
        )
    if comparable and (layer := never_second(base, moved, rest)):
        raise CaptureError(
            f"{layer}: what would be filed under the second image does not change with it, so its rows are those of "
            "others. Does the model add images of its own, to pad the batch for instance? Capture the model inside."
        )
    if many and comparable:
        more = [down, right, others.flip(-1), first.flip(-2)]
        alone = [(base, 0), (base, 1), (moved, 0), (rest, 1)]
        refuse_other_images(model, torch.cat([first, others, *more]), alone)
    search = _Search(model, pixels[:2], TokenPlacement.of(model), {layer.name for layer in known_layers(model)})
    of_stage: dict[tuple[object, ...], tuple[str, Places]] = {}
    keys: dict[str, tuple[object, ...]] = {}
    before: dict[tuple[object, ...], Responses | None] = {}
    windows: dict[str, Tensor] = {}
    finest: dict[Tower, TokenGrid] = {}
    for layer, product in base.products.items():
        passes = [value for seen in (base, moved, rest, last) if (value := seen.values.get(layer)) is not None]
        kind = kind_of(product)
        key = keys[layer] = (kind, *product.effective.shape[1:], product.tower)
        if key not in of_stage:
            found_kind, place = search.first_layer(layer, product, kind, passes)
            if place.status == "proved" and place.grid is not None:
                place = replace(place, grid=of_merged(place.grid, finest.setdefault(product.tower, place.grid)))
            of_stage[key] = found_kind, place
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
        image_axes(base, moved) if comparable else {},
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
            values = observed(self.model, self.pixels, layer, moving=parameter).values[layer]
            moved = (_features(values[0]) - base).abs().amax(-1)[grid.prefix_tokens] > 0
            found = moved.nonzero().flatten().tolist()
            for number, i in enumerate(found):
                names[i] = f"{kind}{number}" if kind == "reg" else kind
        return replace(grid, prefix=tuple(names))

    def _values(self, layer: str, images: Tensor) -> Tensor:
        """[image, key, feature], V of one layer; as many images at once as the certificate has."""
        seen = [observed(self.model, part, layer).values[layer] for part in images.split(len(self.pixels))]
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
