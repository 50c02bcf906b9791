"""Effective rank of the tokens of a layer."""

import torch
from torch import Tensor
from torch.nn import functional as F

from attnprobe.core.metric import metric
from attnprobe.metrics.engine.linear_algebra import row_products


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
