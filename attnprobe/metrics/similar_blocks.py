"""Blocks whose attention repeats that of another block."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from attnprobe.core.errors import InputError, check_choice
from attnprobe.core.grid import TokenGrid
from attnprobe.core.measurement import Measurement
from attnprobe.core.metric import metric
from attnprobe.metrics.engine.cosines import layer_cosines
from attnprobe.metrics.engine.heads import HEAD_MATCH, matching
from attnprobe.metrics.engine.linear_algebra import ascending, unit_vectors
from attnprobe.stats.blocks import chosen_threshold

CURVE = tuple(round(0.5 + step / 100, 2) for step in range(50))
"""Thresholds of the curve, since no published one exists: 0.50, 0.51 ... 0.99."""

Pair = Callable[[int, int], Tensor]
"""Two blocks -> [image, head x token], cosines of their token vectors."""

COMPARE = ("previous", "next", "neighbors", "neighbors-max", "any")


def _thresholds(tau: float | str) -> list[float]:
    """The curve's thresholds and the chosen one; NaN, last, stands for a threshold that depends on the image."""
    if tau == "nbr-mean":
        return [*CURVE, math.nan]
    if isinstance(tau, str) or not -1 <= tau < 1:
        raise InputError(f"tau={tau!r} must be a cosine in [-1, 1) or 'nbr-mean'.")
    return sorted({*CURVE, float(tau)})


def _coords(grid: TokenGrid, tau: float | str, **_: Any) -> dict[str, list[Any]]:
    return {"threshold": _thresholds(tau)}


def _summary(m: Measurement) -> dict[str, Any]:
    """Number of similar blocks, which ones and from which block on, counted from 1; see `similar_blocks`."""
    thresholds, rho, tau = m.coords["threshold"], m.settings["rho"], m.settings["tau"]
    chosen = chosen_threshold(m)
    n_blocks, numbers = m.mean.shape[-1], m.block_numbers
    similar = m.mean[chosen] > rho
    last = n_blocks - (m.settings["compare"] == "next")  # the last of these has no next one
    first = last
    while first and similar[first - 1]:
        first -= 1
    counts = (m.mean > rho).sum(-1).tolist()
    low, high = _count_interval(m, rho)
    curve = [i for i, threshold in enumerate(thresholds) if not math.isnan(threshold)]
    return {
        "count": counts[chosen],
        "count_ci": [low[chosen], high[chosen]],
        "of": n_blocks,
        "ratio": [_or_none(x) for x in m.mean[chosen]],
        "ratio_ci": [[_or_none(bound) for bound in block] for block in m.ci[:, chosen].T],
        "similar": [number for number, alike in zip(numbers, similar, strict=True) if alike],
        "collapsed_from": numbers[first] if first < last else None,
        "curve": {
            "threshold": [thresholds[i] for i in curve],
            "count": [counts[i] for i in curve],
            "low": [low[i] for i in curve],
            "high": [high[i] for i in curve],
        },
        "tau": tau,
        "rho": rho,
        "compare": m.settings["compare"],
        "n_images": m.n_images,
    }


@metric(
    axes=("threshold", "layer"),
    value_range=(0.0, 1.0),
    needs_square=True,
    needs_all_layers=True,
    coords=_coords,
    summarise=_summary,
)
def similar_blocks(
    maps: Tensor,
    *,
    tau: float | str = 0.9,
    rho: float = 0.9,
    compare: str = "previous",
    k: int = 2,
    pool: str = "head",
    axis: str = "key",
    center: str = "none",
    exclude_prefix: int = 0,
    head_match: str = "index",
) -> Tensor:
    """Share of a block's token vectors that repeat those of the previous block, at every threshold.

    With s[l, h, t] the cosine of the token vectors of head h, token t in block l and in the block it is compared with:

        r[threshold, l] = mean over h, t of  1 if s[l, h, t] > threshold else 0

    and, from the mean of r over images (`Measurement.summary`): block l is similar if r[tau, l] > rho; `count` is the
    number of similar blocks, `collapsed_from` the first block that is similar with every compared block after it.

    Zhou et al. 2021, arXiv:2103.11886, count "similar blocks" in this spirit, but neither the threshold of the cosine
    nor its pooling over heads, tokens and images is known; reviews report the ratio of 0.9. All other choices are ours,
    so the summary repeats them and adds the curve of the count against the threshold.

    Caveat: near-uniform maps, of an untrained network for instance, are similar at any threshold (see
    `layer_similarity`). Compare with the baselines and with center="mean".

    Args:
        tau: the threshold of the summary. "nbr-mean": per image and block l, the mean of s over heads, tokens and the
            blocks within k of l, l included, that are compared with something.
        rho: the share of vectors above tau that makes a block similar; used by the summary only.
        compare: "previous" block; "next"; "neighbors": s is the mean cosine with the other blocks within k;
            "neighbors-max": the largest of these; "any": the largest cosine with any other block. A block with nothing
            to compare, as the first under "previous", has ratio 0 and is never similar.
        k: reach of "neighbors", "neighbors-max" and "nbr-mean", in blocks.
        pool: "head": each head on its own; "head_mean_map": average the maps of all heads first.
        axis: "key": the vector of token t is the column A[:, t], how much t gives to each query (arXiv:2103.11886);
            "query": it is the row A[t, :], how much t attends to each key.
        center: "none"; "mean": each vector minus the mean of its entries, so that a cosine is a correlation; "uniform":
            minus 1/K, the entry of uniform attention over K keys.
        exclude_prefix: leave out the vectors of so many first tokens; the others keep all their entries.
        head_match: "index": equal numbers of heads are compared; "hungarian": the pairing with the largest mean cosine,
            anew for each image and pair of blocks.

    Raises:
        InputError: an unknown option, or a threshold that is no cosine.
    """
    check_choice("compare", compare, COMPARE)
    check_choice("pool", pool, ("head", "head_mean_map"))
    check_choice("head_match", head_match, HEAD_MATCH)
    thresholds = _thresholds(tau)
    if pool == "head_mean_map":
        maps = maps.mean(2, keepdim=True)
    partners = [_partners(block, maps.shape[1], compare, k) for block in range(maps.shape[1])]
    cosines = _of_matched_heads if head_match == "hungarian" else _of_equal_heads
    pair = cosines(maps, axis, center, exclude_prefix)
    s = torch.stack([_pooled(pair, block, others, compare) for block, others in enumerate(partners)], 1)

    compared = torch.tensor([bool(others) for others in partners]).to(s)
    mean_s = s.mean(-1)
    bars = s.new_tensor(thresholds).expand(*s.shape[:-1], -1).contiguous()
    if tau == "nbr-mean":
        bars[..., -1] = _mean_of_neighbours(mean_s, compared, k)
    above = s.shape[-1] - torch.searchsorted(ascending(s), bars, right=True)  # a tenth of the time of 50 comparisons
    return (above.to(s) / s.shape[-1]).mT * compared + 0 * mean_s.unsqueeze(1)  # 0 * NaN: counting would hide it


def _partners(block: int, n_blocks: int, compare: str, k: int) -> list[int]:
    """The blocks that `block` is compared with."""
    near = range(block - k, block + k + 1)
    reach = {"previous": [block - 1], "next": [block + 1], "neighbors": near, "neighbors-max": near}
    return [other for other in reach.get(compare, range(n_blocks)) if 0 <= other < n_blocks and other != block]


def _of_equal_heads(maps: Tensor, axis: str, center: str, exclude_prefix: int) -> Pair:
    cosines = layer_cosines(maps, axis, center, exclude_prefix)
    return lambda block, other: cosines.of(block, other).flatten(1)


def _of_matched_heads(maps: Tensor, axis: str, center: str, exclude_prefix: int) -> Pair:
    units = unit_vectors(maps, axis, center, exclude_prefix)
    image = torch.arange(len(maps), device=maps.device)[:, None]

    def pair(block: int, other: int) -> Tensor:
        one, two = units[:, block], units[:, other]
        partners = matching(one.flatten(2) @ two.flatten(2).mT)
        return (one * two[image, partners]).sum(-2 if axis == "key" else -1).flatten(1)

    return pair


def _pooled(pair: Pair, block: int, others: list[int], compare: str) -> Tensor:
    """[image, head x token]: cosine of each vector with the same one of the other blocks, pooled over these."""
    if not others:
        return 0 * pair(block, block)  # 0 * NaN: zeros would hide it
    found = torch.stack([pair(block, other) for other in others])
    return found.amax(0) if compare in ("any", "neighbors-max") else found.mean(0)


def _mean_of_neighbours(mean_s: Tensor, compared: Tensor, k: int) -> Tensor:
    """[image, layer]: mean of `mean_s` over the compared blocks within k of each block, itself included."""
    block = torch.arange(len(compared), device=mean_s.device)
    near = ((block[:, None] - block).abs() <= k).to(mean_s) * compared
    return mean_s @ near.mT / near.sum(-1).clamp_min(1)


def _count_interval(m: Measurement, rho: float) -> tuple[list[int | None], list[int | None]]:
    """Fewest and most similar blocks at each threshold, by the bounds of the blocks' own intervals.

    Resampled counts would not do: of blocks whose ratio is near rho they miss the true count most of the time.
    None where there is one image.
    """
    if m.n_images < 2:
        return [None] * len(m.mean), [None] * len(m.mean)
    similar = m.mean > rho  # within its interval but for rounding
    return (similar & (m.ci[0] > rho)).sum(-1).tolist(), (similar | (m.ci[1] > rho)).sum(-1).tolist()


def _or_none(x: float) -> float | None:
    return None if math.isnan(x) else float(x)
