"""The axes of any model's attention tensors: image, window, head, query, key.

Everything is brought to [image, window, head, query, key]; a layer without windows has one.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from attnprobe.core.outputs import relative_error

HEAD_COUNTS = ("num_heads", "n_heads", "num_attention_heads", "heads", "n_head", "nhead")
"""Usual names of the number of heads."""


def heads_of(module: nn.Module) -> int | None:
    """The number of heads that a module states; None if it does not."""
    counts = (getattr(module, name, None) for name in HEAD_COUNTS)
    return next((count for count in counts if isinstance(count, int)), None)


def unfolded(matrix: Tensor, n_images: int, heads: int | None, given: int | None = None) -> Tensor | None:
    """[..., row, column] -> [image, window, head, row, column]; None if its axes cannot be told apart.

    Handles what is in use: [image, head], [image * window, head], [image * head], [image, window, head],
    [image, head, window] before the last two axes. Where windows and heads are equally many, heads come first.

    Args:
        heads: the number that the layer states, if it does.
        given: length of the first axis of the layer's input.
    """
    first, *rest = matrix.shape[:-2] or (1,)
    if first % n_images:
        return None
    if not rest and first == given:  # [image * window]: heads come one after the other
        heads = 1
    if first // n_images == heads and heads not in rest:  # [image * head]
        first, rest = n_images, [heads, *rest]
    extra = first // n_images
    if not rest and heads and extra % heads == 0 and extra > 1:  # [image * window * head]
        rest = [heads]
        extra //= heads
    lead = [extra, *rest]
    at = _head_axis(lead, heads)
    axes = matrix.reshape(n_images, *lead, *matrix.shape[-2:])
    if at is None:
        return axes.reshape(n_images, math.prod(lead), 1, *matrix.shape[-2:])
    axes = axes.movedim(1 + at, -3)
    return axes.reshape(n_images, math.prod(lead) // lead[at], lead[at], *matrix.shape[-2:])


def _head_axis(lead: list[int], heads: int | None) -> int | None:
    """Position, in [factor of the image axis, *others], of the factor that counts heads."""
    others = range(1, len(lead))
    if heads is not None:
        return next((axis for axis in (*others, 0) if lead[axis] == heads), None if heads == 1 else len(lead) - 1)
    return len(lead) - 1


@dataclass(frozen=True, slots=True)
class Factors:
    """A product map @ value = result, each with its batch axes first and in one order."""

    map: Tensor
    value: Tensor
    result: Tensor


def of_matmul(left: Tensor, right: Tensor, result: Tensor, map_is_left: bool) -> Factors:
    """left @ right = result, where one of them is the map; `value @ map.mT` is read as its transpose."""
    if map_is_left:
        return Factors(left, right, result)
    return Factors(right.mT, left.mT, result.mT)


def of_einsum(equation: str, map_: Tensor, value: Tensor, result: Tensor, map_is_first: bool) -> Factors | None:
    """An einsum of two tensors as a product map @ value; None if it is no product of matrices.

    Letters in all three tensors are batch axes, those in map and result queries, those in map and value keys.
    """
    inputs, _, output = equation.replace(" ", "").partition("->")
    terms = inputs.split(",")
    if len(terms) != 2 or not output:
        return None
    of_map, of_value = terms if map_is_first else reversed(terms)
    of_map, of_value, output = (
        _spelt_out(term, tensor.ndim) for term, tensor in ((of_map, map_), (of_value, value), (output, result))
    )
    batch = [letter for letter in of_map if letter in of_value and letter in output]
    queries = [letter for letter in of_map if letter in output and letter not in of_value]
    keys = [letter for letter in of_map if letter in of_value and letter not in output]
    width = [letter for letter in of_value if letter in output and letter not in of_map]
    if not (queries and keys) or len({*batch, *queries, *keys}) != len(of_map):
        return None
    return Factors(
        _arranged(map_, of_map, batch, queries, keys),
        _arranged(value, of_value, batch, keys, width),
        _arranged(result, output, batch, queries, width),
    )


def _spelt_out(term: str, ndim: int) -> str:
    """An ellipsis as capital letters, counted from the right so that they agree between tensors."""
    if "..." not in term:
        return term
    missing = ndim - (len(term) - 3)
    return term.replace("...", "ZYXWVUTS"[:missing][::-1])


def _arranged(tensor: Tensor, letters: str, batch: list[str], rows: list[str], columns: list[str]) -> Tensor:
    """[*batch, rows, columns], several letters of rows or columns made one axis."""
    order = [letters.index(letter) for letter in (*batch, *rows, *columns)]
    shape = [tensor.shape[axis] for axis in order]
    n, m = len(batch), len(batch) + len(rows)
    return tensor.permute(order).reshape(*shape[:n], math.prod(shape[n:m]), math.prod(shape[m:]))


def scores_of(
    q: Tensor,
    k: Tensor,
    mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
) -> Tensor:
    """q k^T scale + mask in float32, or float64 if q is, of which PyTorch's fused attention takes the softmax.

    Args:
        q, k: [..., head, query, width], [..., head, key, width]; fewer heads of k serve groups of those of q.
        mask: True where a query may attend, or numbers to add.
        is_causal: query i sees keys 0 .. i.
        scale: 1 / sqrt(width) if None.

    Returns:
        [..., head, query, key]; -inf where a query may not attend.
    """
    precise = torch.promote_types(q.dtype, torch.float32)
    if q.ndim > 2 and k.shape[-3] != q.shape[-3]:
        k = k.repeat_interleave(q.shape[-3] // k.shape[-3], -3)
    scores = q.to(precise) @ k.to(precise).mT
    scores *= q.shape[-1] ** -0.5 if scale is None else scale
    if is_causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores.masked_fill_(hidden, -torch.inf)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores


def flex_scores_of(
    q: Tensor,
    k: Tensor,
    score_mod: Callable[..., Tensor],
    mask_mod: Callable[..., Tensor],
    scale: float,
    buffers: tuple[tuple[Tensor, ...], tuple[Tensor, ...]] = ((), ()),
) -> Tensor:
    """As `scores_of`, for PyTorch's flex attention: its functions of a score and (image, head, query, key) are applied.

    Args:
        score_mod: from a score and its position to another score; `mask_mod`: from a position to whether it counts.
        buffers: further arguments of the two.
    """
    scores = scores_of(q, k, scale=scale)
    places = [torch.arange(n, device=q.device) for n in scores.shape]
    at = [tuple(0 if i == axis else None for i in range(4)) for axis in (3, 2, 1, 0)]
    modified, allowed = score_mod, mask_mod
    for axes in at:
        modified = torch.vmap(modified, (0, *axes, *(None for _ in buffers[0])))
        allowed = torch.vmap(allowed, (*axes, *(None for _ in buffers[1])))
    scores = modified(scores, *places, *buffers[0])
    return scores.masked_fill(~allowed(*places, *buffers[1]), -torch.inf)


def scaled_factors(q: Tensor, k: Tensor, scale: float | None = None) -> tuple[Tensor, Tensor]:
    """Queries, scaled, and keys whose product is `scores_of` the same arguments, both in its type."""
    precise = torch.promote_types(q.dtype, torch.float32)
    return q.to(precise) * (q.shape[-1] ** -0.5 if scale is None else scale), k.to(precise)


def softmax_of(scores: Tensor) -> Tensor:
    """The softmax of each row of `scores_of`; a row of zeros for a query that may attend nowhere."""
    weights = scores.softmax(-1)
    if (not_numbers := weights[..., :1].isnan()).any():
        weights.masked_fill_(not_numbers & (scores == -torch.inf).all(-1, keepdim=True), 0.0)
    return weights


def error_of_product(value: Tensor, result: Tensor, maps: Tensor) -> float:
    """Relative error of maps times V against the result, all [image, window, head, row, column]."""
    return relative_error(maps.to(value.dtype) @ value, result)
