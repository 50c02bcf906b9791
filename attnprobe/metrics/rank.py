"""Ranks of attention maps, by their singular values s_0 >= s_1 >= ..., and of tokens.

`effective_rank` is the usual one of maps. Singular values cost more than a forward pass at 197 tokens and are computed
once for all metrics that need them; none of these is part of "all", where `effective_rank` has order 2.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from attnprobe.core.errors import InputError, check_choice
from attnprobe.core.metric import metric
from attnprobe.metrics.engine.linear_algebra import row_products, singular_values
from attnprobe.metrics.engine.row_grams import row_grams


@metric(axes=("layer", "head"), value_range=(1.0, None), needs_square=True)
def effective_rank(maps: Tensor, *, order: int = 1) -> Tensor:
    """Effective rank of every attention map, from its singular values s.

        order=1:  exp(- sum_k p_k ln p_k),  p = s / sum(s)       Roy & Vetterli 2007, computed exactly
        order=2:  (sum_k s_k^2)^2 / sum_k s_k^4                  participation ratio of the squared singular values

    Both are 1 for equal rows and T for a permutation of T tokens. Order 2 is the exponential of the Renyi-2 entropy of
    s^2 / sum(s^2); it is never above order 1 and is another number, so quote the order.

    Order 1 is what the field means by effective rank, and what the metric has by its name; it needs singular values
    (float64, by the SVD: square roots of a Gram matrix's eigenvalues keep half of the digits). Order 2 needs one matrix
    product, and is what a set of metrics such as "default" measures. NaN for a map that is zero everywhere.

    Caveat: order 1 counts noise as patterns: near-uniform maps with unrelated log-normal entries of log-std 0.1 have 31
    at 197 tokens and 116 at 577 (order 2: 1.02 at 197). Compare maps of equal size, and with the untrained baseline.

    Args:
        order: 1 or 2.
    """
    check_choice("order", order, (1, 2))
    if order == 1:
        return _each_layer(maps, _exponential_of_entropy)
    grams = row_grams(maps)
    return grams.squared_length.square() / grams.squared_gram


def _exponential_of_entropy(s: Tensor) -> Tensor:
    p = s / s.sum(-1, keepdim=True)
    return (-torch.special.xlogy(p, p).sum(-1)).exp()


@metric(axes=("layer", "head"), value_range=(0.0, None), needs_square=True)
def numerical_rank(maps: Tensor, *, threshold: float = 1e-3) -> Tensor:
    """Numerical rank: number of singular values above a share of the largest.

        N[l, h] = number of k with s_k > threshold * s_0

    Between 1 and T, 0 for a map that is zero.
    Caveat: it depends on the threshold as no other of the family does, so quote it; noise above it counts in full:
    near-uniform maps with unrelated log-normal entries of log-std 0.1 have 181 of 197 at 0.001. Rounding to bfloat16
    is noise of 0.0002 s_0 (near uniform) to 0.002 s_0 (sharp).

    Args:
        threshold: in [0, 1), ours.

    Raises:
        InputError: a threshold out of range.
    """
    if not 0 <= threshold < 1:
        raise InputError(f"threshold={threshold} must lie in [0, 1), a share of the largest singular value.")
    return _each_layer(maps, lambda s: (s > threshold * s[..., :1]).to(s).sum(-1) + 0 * s[..., 0])


@metric(axes=("layer", "head"), value_range=(0.0, None), needs_square=True)
def approximate_rank(maps: Tensor, *, share: float = 0.9) -> Tensor:
    """Approximate rank: fewest singular values that hold a share of the squared Frobenius norm.

        K[l, h] = smallest k with  sum_{j < k} s_j^2 >= share * sum_j s_j^2

    Sanyal et al. 2024, arXiv:2404.08634, with their share of 0.9, for causal attention of language models; that it is
    squares which are summed is our reading. NaN for a map that is zero.
    Caveat: equal rows have s_0 alone, so a head that attends to everything alike and one that attends to a single
    token both have 1.

    Args:
        share: in (0, 1).

    Raises:
        InputError: a share out of range.
    """
    return _each_layer(maps, lambda s: _fewest(s, share))


@metric(axes=("layer",), value_range=(0.0, 1.0), needs_square=True, needs_all_heads=True)
def lazy_rate(maps: Tensor, *, share: float = 0.9) -> Tensor:
    """Share of the heads of a layer whose maps are of rank one, approximately.

        R[l] = mean over h of  1 if K[l, h] = 1 else 0,      K: `approximate_rank`

    A layer where it is near 1 is called lazy by Sanyal et al. 2024, arXiv:2404.08634, who look at K averaged over heads
    and inputs; the rate is ours, as is any bar for it.
    Caveat: every map that is near uniform counts, so a network before training has 1 in all layers; read it beside
    `row_entropy_relative`. Half of every row on one token is enough where the rest is spread out.

    Args:
        share: in (0, 1).

    Raises:
        InputError: a share out of range.
    """
    rank = approximate_rank(maps, share=share)
    return ((rank == 1).to(maps) + 0 * rank).mean(-1)  # 0 * NaN: a comparison would hide it


@metric(axes=("layer", "head"), value_range=(1.0, None), needs_square=True)
def stable_rank(maps: Tensor) -> Tensor:
    """Stable rank: squared Frobenius norm over the squared largest singular value.

        S[l, h] = sum_k s_k^2 / s_0^2

    From 1 (equal rows, or any other single pattern) to T; never above the rank. NaN for a map that is zero.
    Caveat: a sink hides every other pattern: with half of every row on one key, and the other half from each token to
    itself, it is about 2 for any number of tokens, though T patterns are there.
    """
    return _each_layer(maps, lambda s: (s / s[..., :1]).square().sum(-1))


@metric(axes=("layer", "head"), value_range=(1.0, None), needs_square=True)
def nuclear_ratio(maps: Tensor) -> Tensor:
    """Nuclear norm relative to the largest singular value.

        N[l, h] = sum_k s_k / s_0

    Between `stable_rank` and the rank; the code of arXiv:2401.12511 has both. NaN for a map that is zero.
    Caveat: noise adds up: near-uniform maps with unrelated log-normal entries of log-std 0.1 have 2.2 at 197 tokens and
    3.0 at 577. Compare maps of equal size, and with the untrained baseline.
    """
    return _each_layer(maps, lambda s: (s / s[..., :1]).sum(-1))


@metric(axes=("layer", "head"), value_range=(0.0, 1.0), needs_square=True)
def spectral_gap(maps: Tensor) -> Tensor:
    """Spectral gap: relative distance of the second singular value from the largest.

        G[l, h] = 1 - s_1 / s_0

    1 for a map of one pattern, to which repeated attention of this kind contracts at once; 0 where there are two of the
    same size. NaN for a map that is zero; 1 where there is one token.
    Caveat: near-uniform maps have nearly 1, as one pattern has, and a sink nearly hides the others: 0.93 at 197 tokens
    with half of every row on one key, even if the other half goes from each token to itself.
    """
    return _each_layer(maps, lambda s: 1 - s[..., 1:2].sum(-1) / s[..., 0])


@metric(axes=("layer",), value_range=(0.0, None))
def token_rank(tokens: Tensor) -> Tensor:
    """Effective rank (order 2) of the tokens of a layer about their mean: the number of directions they differ in.

        R[l] = (sum_k s_k^2)^2 / sum_k s_k^4 = |X|^4 / |X X^T|^2,      X = u - mean over all tokens of u,  u = x / |x|

    with s the singular values of X. From 1, all along one line, to min(T - 1, D); 0 where all tokens
    are equal. The participation ratio of the covariance's eigenvalues; a low one is a dimensional collapse
    (arXiv:2110.09348, of representations over images). Tokens count with length 1, so a few long ones do not decide.
    Ours in this form. NaN where there is one token.
    Caveat: it says nothing of how far tokens differ: nearly equal ones can differ in many directions
    (`token_similarity`); and a class token far from all patches is a direction of its own.
    """
    units = F.normalize(tokens, dim=-1)
    away = units - units.mean(-2, keepdim=True)
    away = away if away.shape[-2] <= away.shape[-1] else away.mT
    spread = away.square().sum((-2, -1))
    noise = (16 * torch.finfo(tokens.dtype).eps) ** 2 * tokens.shape[-2]  # equal tokens, up to rounding
    ranks = spread.square() / row_products(away).square().sum((-2, -1))
    differ = (spread > noise) | ~spread.isfinite()  # what is not finite stays so
    return torch.where(differ, ranks, 0.0 if tokens.shape[-2] > 1 else torch.nan)


def _fewest(s: Tensor, share: float) -> Tensor:
    """Singular values [..., k] -> how many hold that share of their squares."""
    if not 0 < share < 1:
        raise InputError(f"share={share} must lie in (0, 1), a share of the squared Frobenius norm.")
    held = s.square().cumsum(-1)
    total = held[..., -1:]
    return 1 + (held < share * total).to(s).sum(-1) + 0 / total[..., 0]


def _each_layer(maps: Tensor, measure: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([measure(singular_values(layer)).to(maps.dtype) for layer in maps.unbind(1)], 1)
