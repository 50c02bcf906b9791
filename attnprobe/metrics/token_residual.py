"""Distance of block outputs from equal tokens."""

from torch import Tensor

from attnprobe.core.metric import metric
from attnprobe.metrics.rank_residual import range_of_norm, residual


@metric(axes=("layer",), value_range=(0.0, None), narrow_range=range_of_norm)
def token_residual(tokens: Tensor, *, norm: str = "frobenius") -> Tensor:
    """Relative distance of the output of a block from equal tokens, the rank-one form 1 x^T.

        R[l] = |X - 1 x^T| / |X|,      x = mean over all tokens of X[l, token, :]

    Dong et al. 2021, arXiv:2103.03404: attention without skip connections and MLPs drives it to 0 doubly exponentially
    with depth. norm="frobenius": x is the minimiser; also the share of amplitude that is not constant over tokens,
    which arXiv:2203.05962 follows. norm="composite": the paper's sqrt(|.|_1 |.|_inf), see `rank_residual`; x stays the
    mean, so R is an upper bound of the paper's residual.

    Caveat: a long token can decide: 196 equal tokens and one of the same direction, ten times as long, have R = 0.52.
    An offset that all tokens share, such as a bias, can lower R though they differ as before.

    Args:
        norm: "frobenius" or "composite".

    Returns:
        [image, layer]; NaN where all tokens are zero.
    """
    return residual(tokens, norm)
