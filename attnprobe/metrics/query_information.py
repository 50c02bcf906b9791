"""Mutual information between query and key."""

import math

import torch
from torch import Tensor

from attnprobe.core.maps import TokenGrid
from attnprobe.core.metric import metric
from attnprobe.metrics.row_entropy import floor_at_smallest, sum_x_ln_x


@metric(axes=("layer", "head"), value_range=(0.0, 1.0), needs_stochastic=True)
def query_information(maps: Tensor, grid: TokenGrid) -> Tensor:
    """Normalised mutual information (NMI) between query and key.

        NMI[l, h] = I(q; k) / sqrt(H(q) H(k)),      p(q) = 1/N,  p(k | q) = A[q, k],  q and k over N patches

    with I(q; k) = H(k) - mean over q of H(A[q, :]). 0: every query attends alike, the attention has collapsed; 1: every
    query has a key of its own. Park et al. 2023, arXiv:2305.00729; prefix tokens are dropped and rows scaled back to
    sum 1, as in the authors' code, but nothing is added for smoothing. A query that puts nothing on patches is left out
    (NaN if all do); 0 where all queries attend to one key, for H(k) is 0 then.

    Caveats: 0 does not tell uniform attention from a sink that all queries share, and a head that attends by position
    alone, each patch to itself, scores 1. What a head leaves to patches counts in full, however little it is.
    """
    layers = []
    for layer in maps.unbind(1):
        weights = layer[..., grid.n_prefix :, grid.n_prefix :]
        mass = weights.sum(-1, keepdim=True)
        looks = mass != 0
        n = looks.sum((-2, -1)).double()
        n = torch.where(n > 0, n, math.nan)
        rows = floor_at_smallest(weights / torch.where(looks, mass, 1.0))  # of a query left out: zeros, which add none
        conditional = -sum_x_ln_x(rows.flatten(-2)) / n
        marginal = -sum_x_ln_x(floor_at_smallest(rows.sum(-2) / n.unsqueeze(-1).to(maps)))
        size = (marginal.clamp_min(0) * n.log()).sqrt()
        tiny = size <= 1e-6 * math.log(max(2, grid.rows * grid.cols))
        ratio = (marginal - conditional) / torch.where(tiny, 1.0, size)
        layers.append(torch.where(tiny, 0.0 * ratio, ratio.clamp(0, 1)).to(maps))  # out of range by rounding only
    return torch.stack(layers, 1)
