"""The axes of the products of a layer that is running, and products that are no map of tokens, which are refused."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from attnprobe.capturing.axes import Factors, Known, Layout
from attnprobe.capturing.call_stack import Call
from attnprobe.capturing.joining import same_value
from attnprobe.capturing.pieces import Pieces
from attnprobe.capturing.softmax_trails import Trails, same_storage, tensors, unseen
from attnprobe.core.errors import CaptureError


def known_of(running: Sequence[Call], n_images: int, value: Tensor | None = None) -> Known:
    """Facts about the innermost module that is running, and about V."""
    return Known.of(running[-1].module, running[-1].given, n_images, value) if running else Known()


def layout_of(layer: Call, maps: Tensor, value: Tensor, n_images: int) -> Layout:
    """The axes of the maps that multiply V: the image's, windows and heads.

    Raises:
        CaptureError: they cannot be told apart.
    """
    name = layer.name or type(layer.module).__name__
    known = known_of([layer], n_images, value.expand(*maps.shape[:-2], -1, -1))
    try:
        layout = Layout.of(maps.shape, n_images, known) if n_images else None
    except CaptureError as error:
        raise CaptureError(f"{name}: {error}") from None
    if layout is None:
        raise CaptureError(
            f"{name}: its maps are {tuple(maps.shape)} for {n_images} "
            "images; which axis is the image's cannot be told. Capture needs it first, alone or times windows or "
            "heads; of a model of images and texts, capture the vision tower alone."
        )
    return layout


def of_all_heads(of: Factors) -> Factors:
    """A map that several heads share, for each of them."""
    lead = torch.broadcast_shapes(of.map.shape[:-2], of.value.shape[:-2])
    return of if of.map.shape[:-2] == lead else Factors(of.map.expand(*lead, -1, -1), of.value, of.result)


def is_context(value: Tensor, before: Tensor | None, made: Pieces, running: Sequence[Call]) -> bool:
    """True if this is the last map times V, scaled or not, with as many rows as channels, as in linear attention.

    Args:
        before: the result of the last product.
        made: what is made of the results of products.
    """
    if before is None or before.shape[-1] != before.shape[-2] or before.numel() != value.numel():
        return False
    return bool(running and running[-1].softmaxes) and (value in made or same_storage(before, value))


def refuse_factorised(
    args: Any, before: Tensor | None, made: Pieces, running: Sequence[Call], allow_missing: bool
) -> None:
    """Raise CaptureError if queries without a softmax are multiplied with keys times values.

    Where the map of keys is not square its rows are seen to be channels, so that it is read as such.
    """
    found = running[-1].found if running else []
    square = bool(found) and found[-1].effective.shape[-2] == found[-1].effective.shape[-1]
    if square and any(is_context(tensor, before, made, running) for tensor in tensors(args)):
        refuse_linear(running[-1], allow_missing)


def refuse_linear(layer: Call, allow_missing: bool) -> None:
    """Raise CaptureError, as linear attention has no map; forget what was taken for one if it may be missing."""
    if allow_missing:
        layer.found.clear()
        layer.products = 0
        return
    raise CaptureError(
        f"{layer.name} multiplies queries with (keys times values): this is linear attention, and there is "
        "no map of tokens by tokens to capture."
    )


def refuse_another_form(of: Factors, layer: Call, n_images: int) -> None:
    """Raise CaptureError if a softmax that multiplied V multiplies it once more, transposed or changed."""
    of = of_all_heads(of)
    same = [product for product in layer.found if same_value(product, of.value)]
    if not same:
        return
    maps = layout_of(layer, of.map, of.value, n_images).unfold(of.map)
    if not any(p.effective.shape == maps.shape and torch.equal(p.effective, maps) for p in same):
        raise CaptureError(
            f"{layer.name} multiplies one V with two forms of one softmax, as with a map and its transpose; what "
            "multiplies V is neither."
        )


def folded_of_three(args: Any, operands: list[Tensor], trails: Trails) -> tuple[Any, list[Tensor]]:
    """An einsum of a map, V and a third tensor as one of two: the third as a factor of the map."""
    equation = next((x for x in args if isinstance(x, str)), "")
    inputs, _, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    at = next((i for i, t in enumerate(operands) if trails.get(t) is not None), None)
    if at is None or len(terms) != 3 or "." in equation:
        return args, operands
    third = next((i for i, term in enumerate(terms) if i != at and set(term) <= set(terms[at])), None)
    if third is None:
        return args, operands
    other = ({0, 1, 2} - {at, third}).pop()
    with unseen():
        scaled = torch.einsum(f"{terms[at]},{terms[third]}->{terms[at]}", operands[at], operands[third])
    trails.follow([(operands[at], trail)] if (trail := trails.get(operands[at])) else [], (), scaled)
    return (f"{terms[at]},{terms[other]}->{output}",), [scaled, operands[other]]
