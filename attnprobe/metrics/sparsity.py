"""Sparsity of attention rows: six measures, each the mean over the queries of a head; `row_entropy` is a seventh."""

import math

import numpy as np
import torch
from torch import Tensor

from attnprobe.core.errors import InputError
from attnprobe.core.metric import metric
from attnprobe.metrics.engine.linear_algebra import mean_sorted_row, row_lengths


@metric(axes=("layer", "head"), value_range=(0.0, 1.0), needs_stochastic=True, by_row=True)
def row_gini(maps: Tensor) -> Tensor:
    """Gini coefficient of attention rows, mean over the queries of a head.

        G = sum_k (2 k - K - 1) a_(k) / K,      a_(1) <= ... <= a_(K) a row in ascending order

    0 for uniform attention, 1 - 1/K for a row that attends to one of K keys. Hurley & Rickard 2009 prefer it among
    measures of sparsity.
    Caveat: a row that is uniform over m keys scores 1 - m/K, so that 10 keys are 0.95 at 197 tokens and 0.98 at 577:
    compare maps of equal size.
    """
    n = maps.shape[-1]
    weights = torch.arange(1 - n, n, 2, dtype=maps.dtype, device=maps.device) / n
    return mean_sorted_row(maps) @ weights


@metric(axes=("layer", "head"), value_range=(0.0, 1.0), needs_stochastic=True, by_row=True)
def row_hoyer(maps: Tensor) -> Tensor:
    """Hoyer sparsity of attention rows, mean over the queries of a head.

        H = (sqrt(K) - |a|_1 / |a|_2) / (sqrt(K) - 1)

    Hoyer 2004. 0 for uniform attention, 1 for a row that attends to one key. NaN where there is only one key.
    Caveat: the largest weight decides: a row with half of its attention on one of 197 keys and the rest spread evenly
    over the others scores 0.92.
    """
    root = math.sqrt(maps.shape[-1])
    if root == 1:
        return maps.new_full(maps.shape[:3], math.nan)
    sums, lengths = row_lengths(maps)
    return (root - (sums / lengths).mean(-1)) / (root - 1)


@metric(axes=("layer", "head"), value_range=(1.0, None), unit="tokens", needs_stochastic=True, by_row=True)
def row_participation(maps: Tensor) -> Tensor:
    """Participation ratio of attention rows, a number of tokens, mean over the queries of a head.

        N = (sum_j a_j)^2 / sum_j a_j^2

    1 for a row that attends to one key, K for uniform attention; for each row the exponential of the Renyi-2 entropy,
    and never above that of the Shannon entropy (`row_entropy`).
    Caveats: the largest weight decides: half on one key and the rest spread evenly over 196 are 4 tokens, 28 by the
    Shannon entropy. Flat queries decide the mean: half of them at one key and half uniform over 197 give 99.
    """
    sums, lengths = row_lengths(maps)
    return (sums / lengths).square().mean(-1)


@metric(axes=("layer", "head"), value_range=(0.0, 1.0), needs_stochastic=True, by_row=True)
def row_top_mass(maps: Tensor, *, k: int = 5) -> Tensor:
    """Attention on the k most attended keys of each query, mean over the queries of a head.

        M = a_(1) + ... + a_(k),      a_(1) >= a_(2) >= ... a row in descending order

    k/K for uniform attention over K keys; k = 1 is `head_confidence`.
    Caveat: every query has k keys of its own, so a high value does not say that queries share them (`sink_mass` does);
    with few tokens it is high for uniform attention, too.

    Args:
        k: how many keys; all of them where there are fewer.

    Raises:
        InputError: k below 1.
    """
    if k < 1:
        raise InputError(f"k={k} must be the number of keys to count, at least 1.")
    return mean_sorted_row(maps)[..., -k:].sum(-1)


@metric(axes=("layer", "head"), value_range=(0.0, 1.0), needs_stochastic=True, by_row=True)
def row_small_share(maps: Tensor, *, threshold: float = 1e-3) -> Tensor:
    """Share of attention weights below a threshold, mean over the queries of a head.

        Z = mean over i, j of  1 if A[l, h, i, j] < threshold else 0

    What a sparse kernel could leave out.
    Caveat: the threshold is absolute, so the share grows with the number of tokens (at more than 1/threshold keys
    uniform attention is all small), and small entries can together hold much of the attention.

    Args:
        threshold: 0.001 is ours.
    """
    entries = maps.shape[-2] * maps.shape[-1]
    small = torch.empty_like(maps[:, 0], dtype=torch.bool)
    counts = [_how_many(torch.lt(layer, threshold, out=small)).to(maps) for layer in maps.unbind(1)]
    return torch.stack(counts, 1) / entries + 0 * row_lengths(maps)[0].sum(-1)  # 0 * NaN: a comparison would hide it


def _how_many(true: Tensor) -> Tensor:
    """Over the last two axes; on a CPU by NumPy, matrix by matrix, which takes a third of the time."""
    if not true.is_cpu:
        return true.sum((-2, -1))
    matrices = true.flatten(0, -3).numpy()
    return torch.tensor([np.count_nonzero(matrix) for matrix in matrices]).view(true.shape[:-2])


@metric(axes=("layer", "head"), value_range=(0.0, 1.0), needs_stochastic=True, by_row=True)
def head_confidence(maps: Tensor) -> Tensor:
    """Largest attention weight of a row, mean over the queries of a head.

        C[l, h] = mean over i of max_j A[l, h, i, j]

    The confidence of Voita et al. 2019, arXiv:1905.09418; every query counts. 1/K for uniform attention over K keys.
    Caveat: a head that only feeds a sink is fully confident; see `sink_mass`.
    """
    return maps.amax(-1).mean(-1)
