"""Distance of attention maps, and of block outputs, from rank one with equal rows."""

import torch
from torch import Tensor

from attnprobe.core.errors import check_choice
from attnprobe.core.metric import metric


def range_of_norm(stochastic: bool, norm: str) -> tuple[float, float | None]:
    return (0.0, 1.0) if norm == "frobenius" else (0.0, None)


@metric(axes=("layer", "head"), value_range=(0.0, None), needs_square=True, narrow_range=range_of_norm)
def rank_residual(maps: Tensor, *, norm: str = "frobenius") -> Tensor:
    """Relative distance of an attention map from equal rows, the rank-one form 1 x^T.

        R[l, h] = |A - 1 x^T| / |A|,      x_j = mean over i of A[l, h, i, j]

    After the residual of Dong et al. 2021, arXiv:2103.03404, who take it of the tokens X; of the map A it is ours.
    norm="frobenius": x is then the minimiser, and R lies in [0, 1]. norm="composite": the paper's
    sqrt(|.|_1 |.|_inf), the largest column sum times the largest row sum of absolute values; x stays the column mean,
    which does not minimise that norm, so R is an upper bound of the paper's residual and may exceed 1. NaN for a map
    that is zero everywhere.

    Caveat: 0 means only that every query attends alike: uniform attention, or all queries on the same tokens.
    Near-uniform maps, of an untrained network for instance, are close to it: unrelated log-normal entries of log-std s
    have sqrt(1 - exp(-s^2)), 0.10 at s = 0.1.

    Args:
        norm: "frobenius" or "composite".
    """
    return torch.stack([residual(layer, norm) for layer in maps.unbind(1)], 1)  # one layer at a time stays in cache


def residual(matrix: Tensor, norm: str) -> Tensor:
    """[...] of [..., row, column]: the norm of what is left of the rows without their mean, over that of the matrix."""
    check_choice("norm", norm, ("frobenius", "composite"))

    mean = matrix.mean(-2, keepdim=True)
    left = matrix - mean
    if norm == "frobenius":  # rows about their mean and the mean are orthogonal: no second pass over the matrix
        squared = torch.linalg.vector_norm(left.flatten(-2), dim=-1).square()
        return (squared / (squared + matrix.shape[-2] * mean.square().sum((-2, -1)))).sqrt()
    return _composite(left) / _composite(matrix)


def _composite(matrix: Tensor) -> Tensor:
    """Root of the largest column sum times the largest row sum of absolute values."""
    absolute = matrix.abs()
    return (absolute.sum(-2).amax(-1) * absolute.sum(-1).amax(-1)).sqrt()


@metric(axes=("layer",), value_range=(0.0, None), narrow_range=range_of_norm)
def token_residual(tokens: Tensor, *, norm: str = "frobenius") -> Tensor:
    """Relative distance of the output of a block from equal tokens, the rank-one form 1 x^T.

        R[l] = |X - 1 x^T| / |X|,      x = mean over all tokens of X[l, token, :]

    Dong et al. 2021, arXiv:2103.03404: attention without skip connections and MLPs drives it to 0 doubly exponentially
    with depth. norm="frobenius": x is the minimiser; also the share of amplitude that is not constant over tokens,
    which arXiv:2203.05962 follows. norm="composite": the paper's sqrt(|.|_1 |.|_inf), see `rank_residual`; x stays the
    mean, so R is an upper bound of the paper's residual. NaN where all tokens are zero.

    Caveat: a long token can decide: 196 equal tokens and one of the same direction, ten times as long, have R = 0.52.
    An offset that all tokens share, such as a bias, can lower R though they differ as before.

    Args:
        norm: "frobenius" or "composite".
    """
    return residual(tokens, norm)
