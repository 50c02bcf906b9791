"""Share of attention that two blocks have in common."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnprobe.core.errors import InputError, check_choice
from attnprobe.core.measurement import Measurement
from attnprobe.core.metric import metric
from attnprobe.metrics.engine.compiled import kernels
from attnprobe.metrics.engine.heads import matching

PART = 2048
"""About so many differences are summed up in the precision of the maps, and their sums in float64."""

COMPARE = ("previous", "earlier", "first")


def _summary(m: Measurement) -> dict[str, Any]:
    """Overlap of each block with the block it is compared with, None for the first, and the number of that block (from
    1)."""
    partners = compared_with(m.mean, m.settings["compare"])
    overlap = [None, *(float(m.mean[block, p]) for block, p in enumerate(partners, 1))]
    return {
        "overlap": [None if x is None or math.isnan(x) else x for x in overlap],
        "compared_with": [None, *(m.block_numbers[p] for p in partners)],
        "compare": m.settings["compare"],
        "n_images": m.n_images,
    }


def compared_with(overlap: np.ndarray, compare: str) -> list[int]:
    """Position of the block that each block but the first is compared with, from the overlaps [layer, layer].

    "previous": the previous block; "first": block 0; "earlier": the earlier block it overlaps most with, the nearest of
    several. Blocks without a finite overlap are compared with the previous block.
    """
    found = []
    for block in range(1, len(overlap)):
        before = overlap[block, :block][::-1]
        nearest = 0 if np.isnan(before).all() else int(np.nanargmax(before))
        found.append({"previous": block - 1, "first": 0}.get(compare, block - 1 - nearest))
    return found


@metric(
    axes=("layer", "layer"), value_range=(0.0, 1.0), needs_all_layers=True, needs_all_heads=True, summarise=_summary
)
def map_overlap(maps: Tensor, *, compare: str = "previous", every: int = 5) -> Tensor:
    """Share of attention that two blocks have in common: 1 - the total variation distance of rows.

        O[l, m] = mean over h, i of  sum_j min(A[l, h, i, j], A[m, h, i, j])
                = 1 - sum_{h, i, j} |A[l] - A[m]| / sum_{h, i, j} (|A[l]| + |A[m]|)

    From 0, no key in common, to 1, equal rows. Ours, as a count of what repeats: it weighs keys by their mass, so a
    floor of tiny weights has no say, and it sees rows with a single key, which leave most columns empty. Beside it,
    `similar_blocks` is the count of arXiv:2103.11886, by the cosine of columns. The second form also serves maps that
    are changed after the softmax, whose rows have any sum and sign. Symmetric, 1 on the diagonal.

    Caveat: near-uniform rows overlap whatever they attend to: 0.89 for unrelated softmax rows of logits with standard
    deviation 0.2. See `row_entropy` for those and `content_overlap` for maps that are the same in all images.

    Args:
        compare: with which block the summary compares each: the "previous" one; "earlier": that of all before it that
            it overlaps most with, which finds A, B, A, B; the "first", whose overlap falls where maps drift.
        every: blocks that are not neighbours are compared at every fifth query, for there are many pairs; neighbours
            at all queries.
    """
    check_choice("compare", compare, COMPARE)
    _check_every(every)
    sizes = torch.stack([layer.abs().sum(-1) for layer in maps.unbind(1)], 1)  # [image, layer, head, query]
    whole, part = (x.sum((-2, -1), dtype=torch.float64) for x in (sizes, sizes[..., ::every]))
    size, step = part.unsqueeze(-1) + part.unsqueeze(-2), whole[:, 1:] + whole[:, :-1]
    size.diagonal(-1, -2, -1).copy_(step)
    apart = _apart(maps, every).tril(-1) / torch.where(size > 0, size, 1.0)
    return (1 - apart - apart.mT + 0 * whole.unsqueeze(1)).to(maps.dtype)  # NaN on the diagonal, too


def _apart(maps: Tensor, every: int) -> Tensor:
    """[image, layer, layer], float64, below the diagonal: sum over |A[l] - A[m]|, of neighbours at all queries."""
    n_layers = maps.shape[1]
    apart = maps.new_zeros(len(maps), n_layers, n_layers, dtype=torch.float64)
    if compiled := kernels(maps):
        compiled.differences(maps.numpy(), every, apart.numpy())
        return apart
    later, earlier = torch.triu_indices(n_layers, n_layers, 1, device=maps.device).flip(0)
    for of_image, heads in zip(apart, maps, strict=True):
        of_image[later, earlier] = _all_pairs(heads[..., ::every, :])
    for block in range(1, n_layers):  # two maps of one head fit into the cache
        pairs = zip(maps[:, block].unbind(1), maps[:, block - 1].unbind(1), strict=True)
        found = torch.stack([(one - other).abs_().sum(-1) for one, other in pairs])
        apart[:, block, block - 1] = found.sum((0, -1), dtype=torch.float64)
    return apart


def _all_pairs(heads: Tensor) -> Tensor:
    """[layer, head, query, key] -> [pair of layers], float64: sum over |A[l] - A[m]|."""
    n_layers, _, _, n_keys = heads.shape
    heads = heads.to(torch.promote_types(heads.dtype, torch.float32))  # what `pdist` knows
    total = heads.new_zeros(n_layers * (n_layers - 1) // 2, dtype=torch.float64)
    for head in heads.unbind(1):
        for rows in head.split(max(1, PART // n_keys), 1):
            total += torch.pdist(rows.flatten(1), 1.0)
    return total


def _check_every(every: int) -> None:
    if every < 1:
        raise InputError(f"every={every} must be 1, for all queries, or more.")


@metric(axes=("layer",), value_range=(0.0, 1.0), needs_stochastic=True, needs_all_layers=True, needs_all_heads=True)
def map_overlap_matched(maps: Tensor, *, every: int = 5) -> Tensor:
    """`map_overlap` with the previous block, each head with the head of that block that is most like it.

        M[l] = mean over h, i of  sum_j min(A[l, h, i, j], A[l - 1, pi(h), i, j])

    pi is the permutation of heads with the largest sum over h, i, j of sqrt(A[l, h] A[l - 1, pi(h)]), the affinity of
    Bhattacharyya, which costs one matrix product; anew for each image and block. Ours; without it, blocks that are
    equal but for the order of their heads have nothing in common. 0 for the first block, which has none before it.
    Caveat: of many heads some fit by chance, so unrelated maps score a little more than by `map_overlap`.

    Args:
        every: every fifth query counts.
    """
    _check_every(every)
    image, heads = torch.arange(len(maps), device=maps.device), range(maps.shape[2])
    n_rows = len(heads) * len(range(0, maps.shape[3], every))
    found = [0 * maps[:, 0].sum((-3, -2, -1))]
    some = maps[:, 0, :, ::every].flatten(2)
    roots = some.sqrt()
    for block in range(1, maps.shape[1]):
        before, roots_before = some, roots
        some = maps[:, block, :, ::every].flatten(2)
        roots = some.sqrt()
        partner = matching(roots @ roots_before.mT)
        apart = [(some[:, h] - before[image, partner[:, h]]).abs_().sum(-1) for h in heads]
        of_image = 1 - torch.stack(apart).sum(0, dtype=torch.float64) / (2 * n_rows)
        found.append(of_image.to(maps.dtype) + 0 * maps[:, block].sum((-3, -2, -1)))
    return torch.stack(found, 1)
