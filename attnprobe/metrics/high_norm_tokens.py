"""Patches whose output has an unusually large norm."""

from torch import Tensor

from attnprobe.core.errors import InputError
from attnprobe.core.maps import TokenGrid
from attnprobe.core.metric import metric


@metric(axes=("layer",), value_range=(0.0, 1.0))
def high_norm_tokens(tokens: Tensor, grid: TokenGrid, *, factor: float = 3.0) -> Tensor:
    """Share of the patches whose output is longer than a multiple of the median patch's.

        N[l] = mean over patches i of  1 if |x_i| > factor * median_j |x_j| else 0

    Darcet et al. 2024, arXiv:2309.16588, find such tokens in patches of little content and give the model registers
    instead. They compare with a fixed norm; a multiple of the median, and 3, are ours. Prefix tokens do not count.
    Caveat: the number depends on the factor, so quote it; and where most patches are long the median is, too, so that
    none need count.

    Args:
        factor: above 1.

    Raises:
        InputError: a factor of 1 or less.
    """
    if not factor > 1:
        raise InputError(f"factor={factor} must be above 1, a multiple of the median norm.")
    norms = tokens[..., grid.n_prefix :, :].norm(dim=-1)
    return ((norms > factor * norms.quantile(0.5, -1, keepdim=True)).to(norms) + 0 * norms).mean(-1)


@metric(axes=("layer",), value_range=(1.0, None))
def largest_token_norm(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """Length of the longest patch output in units of the median patch's.

        R[l] = max_i |x_i| / median_j |x_j|,      i, j over patches

    The size of the outliers that `high_norm_tokens` counts. Source as for `high_norm_tokens`.
    Caveat: it rests on one patch, and a maximum grows with their number without any outlier: log-normal norms of
    log-std 0.3 give 2.1 for 64 patches and 2.5 for 576.

    Returns:
        [image, layer]; not finite if most patches are zero.
    """
    norms = tokens[..., grid.n_prefix :, :].norm(dim=-1)
    return norms.amax(-1) / norms.quantile(0.5, -1)
