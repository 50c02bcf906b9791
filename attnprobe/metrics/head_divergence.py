"""Jensen-Shannon divergence between the heads of a layer, and the number of heads that differ."""

import math

import torch
from torch import Tensor

from attnprobe.core.metric import metric
from attnprobe.metrics.engine.entropies import map_information, mixture_information
from attnprobe.metrics.engine.heads import cluster_summary


@metric(
    axes=("layer", "head", "head"),
    value_range=(0.0, math.log(2)),
    unit="nats",
    needs_stochastic=True,
    by_row=True,
    summarise=cluster_summary,
)
def head_divergence(maps: Tensor, *, cut: float = 0.05) -> Tensor:
    """Jensen-Shannon divergence between the rows of two heads, mean over queries, for every pair of heads of a layer.

        D[l, h, g] = mean over i of  E((p + q) / 2) - (E(p) + E(q)) / 2,      p = A[l, h, i, :], q = A[l, g, i, :]

    with E the entropy in nats: exact, without smoothing, from 0 (equal rows) to ln 2 (no common key).
    Distances between heads by this divergence, then a clustering: Clark et al. 2019, arXiv:1906.04341; they sum over
    queries of smoothed rows, we take the mean, so that the bound stays ln 2 for any number of tokens.

    The summary clusters the heads of each layer by the mean distance over images (average linkage). The number of
    clusters at the distance `cut` is the number of effective heads, ours; `redundant` counts the other heads.
    Symmetric, 0 on the diagonal.

    Caveats: near-uniform heads are close whatever they prefer and count as redundant, in an untrained network, too:
    unrelated rows of log-normal entries of small log-std s are about s^2/4 nats apart, 0.0025 at s = 0.1. The mean
    hides a few queries, such as the class token's, on which heads share nothing: one of 197 adds 0.0035.

    Args:
        cut: clusters at this distance or further apart stay apart; used by the summary only. The total variation of two
            rows is at most sqrt(2 D), so heads closer than 0.05 nats share at least 68 % of their attention mass in
            the mean over queries. 0.05 is 7 % of ln 2; the choice is ours.
    """
    own = map_information(maps)
    mixed = torch.stack([mixture_information(layer.flatten(-2)) for layer in maps.unbind(1)], 1)
    divergence = (own.unsqueeze(-1) + own.unsqueeze(-2)) / 2 - mixed  # a small difference: all sums are in float64
    divergence = (divergence / maps.shape[-2]).triu(1).clamp_min(0)  # below 0 by rounding only; NaN stays NaN
    return (divergence + divergence.mT + torch.diag_embed(0 * own)).to(maps.dtype)  # NaN on the diagonal, too
