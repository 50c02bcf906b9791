"""The axes of any model's attention tensors: image, window, head, query, key.

Everything is brought to [image, window, head, query, key]; a layer without windows has one.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import torch
from torch import Tensor, nn

from attnprobe.core.errors import CaptureError
from attnprobe.core.outputs import relative_error

HEAD_COUNTS = ("num_heads", "n_heads", "num_attention_heads", "heads", "n_head", "nhead")
"""Usual names of the number of heads."""


def heads_of(module: nn.Module) -> int | None:
    """The number of heads that a module states; None if it does not."""
    counts = (getattr(module, name, None) for name in HEAD_COUNTS)
    return next((count for count in counts if isinstance(count, int)), None)


def tokens_of(given: Tensor, n_images: int) -> tuple[int, ...]:
    """The numbers of tokens that each image may have in the input of a layer."""
    shape = tuple(given.shape)
    if len(shape) == 3 and n_images in shape[:2]:
        return (shape[1] if shape[0] == n_images else shape[0],)
    if len(shape) == 4 and shape[0] == n_images:  # channels last, channels first
        return (shape[1] * shape[2], shape[2] * shape[3])
    return ()


@dataclass(frozen=True, slots=True)
class Known:
    """Facts about a layer besides the shape of its tensors.

    Attributes:
        heads: the number that the layer states; None if it does not.
        given: length of the first axis of the layer's input.
        tokens: how many tokens an image may have in that input.
        strides: of V, brought to as many axes as the map has.
    """

    heads: int | None = None
    given: int | None = None
    tokens: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    @classmethod
    def of(cls, module: nn.Module, given: Tensor | None, n_images: int, value: Tensor | None = None) -> "Known":
        """Read off a layer, its input and V."""
        shape = () if given is None else tuple(given.shape)
        tokens = () if given is None else tokens_of(given, n_images)
        return cls(heads_of(module), shape[0] if shape else None, tokens, () if value is None else value.stride())


@dataclass(frozen=True, slots=True)
class Layout:
    """The axes before the last two: those that count images, windows and heads.

    Attributes:
        lead: lengths of these axes, the first one split in images and the rest of it.
        heads: from which to which of them are heads, the end excluded.
    """

    lead: tuple[int, ...]
    heads: tuple[int, int]

    @classmethod
    def of(cls, shape: Sequence[int], n_images: int, known: Known) -> "Layout | None":
        """The layout of a map of this shape; None if the image's axis cannot be told.

        Handles what is in use: [image, head], [image * window, head], [image * head], [image, window, head],
        [image, head, window], [image, group, head of the group] before the last two axes.

        Raises:
            CaptureError: windows and heads cannot be told apart.
        """
        first, *rest = shape[:-2] or (1,)
        if first % n_images:
            return None
        heads = known.heads
        if not rest and first == known.given:  # [image * window]: heads come one after the other
            heads = 1
        if first // n_images == heads and heads not in rest:  # [image * head]
            first, rest = n_images, [heads, *rest]
        extra = first // n_images
        if not rest and heads and extra % heads == 0 and extra > 1:  # [image * window * head]
            rest = [heads]
            extra //= heads
        elif not rest and heads is None and _hides_windows(shape, extra, known.tokens):
            raise CaptureError(
                f"maps of {tuple(shape)} count images, windows and heads in one axis, and the layer states no number "
                "of heads; windows and heads cannot be told apart. Give the module an attribute num_heads."
            )
        lead = (extra, *rest)
        start, end = _head_axes(lead, replace(known, heads=heads), shape, first > n_images)
        return cls((n_images, *lead), (1 + start, 1 + end))

    def unfold(self, matrix: Tensor) -> Tensor:
        """[..., row, column] -> [image, window, head, row, column]."""
        start, end = self.heads
        n, size = len(self.lead), matrix.shape[-2:]
        windows = [axis for axis in range(1, n) if not start <= axis < end]
        axes = matrix.reshape(*self.lead, *size).permute(0, *windows, *range(start, end), n, n + 1)
        return axes.reshape(
            self.lead[0], math.prod(self.lead[i] for i in windows), math.prod(self.lead[start:end]), *size
        )


def _hides_windows(shape: Sequence[int], extra: int, tokens: Sequence[int]) -> bool:
    """True if square maps of fewer tokens than the layer has are so many that windows may be among them."""
    rows, columns = shape[-2:]
    counts = [n // rows for n in tokens if rows == columns < n and n % rows == 0]
    return any(extra % n_windows == 0 and extra > 1 for n_windows in counts)


def _head_axes(lead: tuple[int, ...], known: Known, shape: Sequence[int], split: bool) -> tuple[int, int]:
    """The axes that count heads, from which to which of [factor of the image axis, *others].

    Args:
        lead: their lengths.
        shape: of the map.
        split: the axis of images counts windows, too.
    """
    last, n = (len(lead) - 1, len(lead)), len(lead)
    if known.heads == 1:
        return 0, 0
    runs = [(i, j) for i in range(n) for j in range(i + 1, n + 1) if 1 not in (lead[i], lead[j - 1])]
    runs = [run for run in runs if run[0] > 0 or not (split and known.given == shape[0] and n > 1)]
    if known.heads is not None:
        runs = [run for run in runs if math.prod(lead[slice(*run)]) == known.heads]
        runs = [run for run in runs if run[1] - run[0] == 1] or runs
    elif len(runs) > 1 and shape[-2] in known.tokens:
        return (0, n) if lead[0] == 1 or not split else (1, n)  # every map is of all tokens: there are no windows
    else:
        runs = [run for run in runs if run[1] - run[0] == 1 and (run[0] > 0 or not split)]
        whole = [run for run in runs if _windows_beside(run, lead) * shape[-2] in known.tokens]
        runs = whole if len(whole) == 1 else runs
    if len(runs) <= 1:
        return runs[0] if runs else last
    told = _innermost([start for start, end in runs if end - start == 1], lead, known.strides)
    if told is None:
        raise CaptureError(
            f"maps of {tuple(shape)} count windows and heads in several axes, and which counts heads cannot be told; "
            "where the layer states no number of heads, give it an attribute num_heads."
        )
    return told, told + 1


def _windows_beside(run: tuple[int, int], lead: tuple[int, ...]) -> int:
    return math.prod(lead) // math.prod(lead[slice(*run)])


def _innermost(axes: Sequence[int], lead: tuple[int, ...], strides: tuple[int, ...]) -> int | None:
    """The axis that counts heads, as V lies in memory: parts of the channels of one token, which are neighbours."""
    if len(strides) != len(lead) + 2 or not 0 < strides[-1] < strides[-2]:
        return None
    nearest = min(axes, key=lambda axis: strides[axis])
    return nearest if 0 < strides[nearest] < strides[-2] else None


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


def of_einsum(
    equation: str, map_: Tensor, value: Tensor, result: Tensor, map_is_first: bool, known: Known | None = None
) -> Factors | None:
    """An einsum of two tensors as a product map @ value; None if it is no product of matrices.

    Letters in all three tensors are batch axes, those in map and result queries or heads that share V, those in map
    and value keys.

    Raises:
        CaptureError: queries and heads that share V cannot be told apart.
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
    sizes = dict(zip(of_map, map_.shape, strict=True))
    sharing = _sharing_heads(queries, [sizes[letter] for letter in batch], sizes, known or Known())
    queries = [letter for letter in queries if letter not in sharing]
    whole = _arranged(value, of_value, batch, keys, width)
    return Factors(
        _arranged(map_, of_map, [*batch, *sharing], queries, keys),
        whole[(slice(None),) * len(batch) + (None,) * len(sharing)],
        _arranged(result, output, [*batch, *sharing], queries, width),
    )


def _sharing_heads(letters: list[str], batch: list[int], sizes: dict[str, int], known: Known) -> tuple[str, ...]:
    """The letters of queries that are heads, with one V for all of them: grouped or multi-query attention.

    Together with axes of the batch, or alone, they make up the stated number of heads, and the other letters all
    tokens; where neither number is known there are none.
    """
    if len(letters) == 1:
        return ()
    choices = [some for n in range(len(letters)) for some in combinations(letters, n)]
    if known.heads is not None:
        runs = {math.prod(batch[i:j]) for i in range(1, len(batch)) for j in range(i, len(batch) + 1)} | {1}
        choices = [some for some in choices if known.heads in {math.prod(sizes[x] for x in some) * n for n in runs}]
    whole = [some for some in choices if _others(some, letters, sizes) in known.tokens]
    if whole or known.heads is None:
        choices = whole
    if len(choices) > 1:
        raise CaptureError(
            f"a product of maps has axes of {[sizes[x] for x in letters]} that V lacks; which are heads that share V, "
            "and which are queries, cannot be told."
        )
    return choices[0] if choices else ()


def _others(some: tuple[str, ...], letters: list[str], sizes: dict[str, int]) -> int:
    return math.prod(sizes[letter] for letter in letters if letter not in some)


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
