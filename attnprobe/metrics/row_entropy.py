"""Entropy of attention rows, and mutual information between query and key."""

import math

import torch
from torch import Tensor

from attnprobe.core.grid import TokenGrid
from attnprobe.core.metric import metric
from attnprobe.metrics.engine.entropies import map_information, sum_x_ln_x


@metric(axes=("layer", "head"), value_range=(0.0, None), unit="nats", needs_stochastic=True, by_row=True)
def row_entropy(maps: Tensor) -> Tensor:
    """Shannon entropy of attention rows, mean over the queries of a head.

        E[l, h] = mean over i of  - sum_j A[l, h, i, j] ln A[l, h, i, j],      0 ln 0 = 0

    From 0 (every query attends to one token) to ln K (uniform over K keys); exp(E) reads as a number of tokens.
    Used for attention heads by Clark et al. 2019, arXiv:1906.04341; low values that stop training: arXiv:2303.06296.

    Caveats: the bound ln K grows with the number of tokens. The mean hides a head with two kinds of queries: half of
    them at one key and half uniform over 197 give exp(E) = 14, a number of tokens that no query attends to.
    """
    return (map_information(maps) / -maps.shape[-2]).to(maps.dtype)


@metric(axes=("layer", "head"), value_range=(0.0, 1.0), needs_stochastic=True, by_row=True)
def row_entropy_relative(maps: Tensor) -> Tensor:
    """Shannon entropy of attention rows relative to uniform attention, mean over the queries of a head.

        R[l, h] = E[l, h] / ln K,      E as in `row_entropy`, K keys

    From 0, one key, to 1, uniform; 0 where there is only one. Sources as for `row_entropy`. Caveat: only the ends are
    the same for any number of tokens; between them R is not comparable across sizes. Rows that are uniform over 10 keys
    score 0.44 at 197 tokens and 0.36 at 577, those that are uniform over a tenth of the keys 0.56 and 0.64.
    """
    n_keys = maps.shape[-1]
    return row_entropy(maps) / (math.log(n_keys) if n_keys > 1 else 1.0)


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
        weights = layer[..., grid.patches, :][..., grid.patches]
        mass = weights.sum(-1, keepdim=True)
        looks = mass != 0
        n = looks.sum((-2, -1)).double()
        n = torch.where(n > 0, n, math.nan)
        rows = weights / torch.where(looks, mass, 1.0)  # of a query left out: zeros, which add none
        conditional = -sum_x_ln_x(rows.flatten(-2)) / n
        marginal = -sum_x_ln_x(rows.sum(-2) / n.unsqueeze(-1).to(maps))
        size = (marginal.clamp_min(0) * n.log()).sqrt()
        tiny = size <= 1e-6 * math.log(max(2, grid.n_patches))
        ratio = (marginal - conditional) / torch.where(tiny, 1.0, size)
        layers.append(torch.where(tiny, 0.0 * ratio, ratio.clamp(0, 1)).to(maps))  # out of range by rounding only
    return torch.stack(layers, 1)
