"""Spatial frequencies of block outputs over the patch grid."""

import math

import torch
from torch import Tensor

from attnprobe.core.errors import InputError
from attnprobe.core.grid import TokenGrid
from attnprobe.core.metric import metric


@metric(axes=("layer",), needs_all_patches=True)
def high_frequency(tokens: Tensor, grid: TokenGrid) -> Tensor:
    """Log amplitude of the highest frequency of a block's output, relative to the constant part.

        D[l] = mean over channels of  ln |F(f_row, f_col)| - ln |F(0, 0)|,      f = (n - 1) // 2 along n patches

    with F the two-dimensional Fourier transform of a channel over the patch grid; prefix tokens are left out. Park &
    Kim 2022, arXiv:2202.06709: falling with depth where attention acts as a low-pass filter. As in their code f is the
    last value of the half diagonal of the shifted transform, which for an even n is one below the Nyquist frequency;
    amplitudes below 1e-6 count as 1e-6.

    Caveat: a block that changes the part which all patches share changes D without a change of detail, and only one
    frequency counts: stripes along rows or columns, however fine, do not show.

    Returns:
        [image, layer], natural logarithms.
    """
    sides = [torch.arange(n, dtype=torch.float64) * ((n - 1) // 2) / n for n in (grid.rows, grid.cols)]
    angle = 2 * math.pi * (sides[0][:, None] + sides[1]).flatten()
    wave = torch.stack([angle.cos(), angle.sin()]).to(tokens)
    patches = tokens[..., grid.patches, :]
    highest = torch.linalg.vector_norm(wave @ patches, dim=-2)
    constant = patches.sum(-2).abs()
    return (highest.clamp_min(1e-6).log() - constant.clamp_min(1e-6).log()).mean(-1)


@metric(axes=("layer",), value_range=(0.0, 1.0), needs_all_patches=True)
def high_frequency_share(tokens: Tensor, grid: TokenGrid, *, cutoff: float = 0.5) -> Tensor:
    """Share of the energy of a block's output at high spatial frequencies.

        E[l] = sum over channels, high f of |F(f)|^2 / sum over channels, all f of |F(f)|^2

    A frequency is high if it exceeds the cutoff, in units of the Nyquist frequency of half a cycle per patch, along
    rows or columns. F as in `high_frequency`; the constant part counts in the denominator. cutoff=0 keeps everything
    but the constant part: the square of `token_residual`, of patches. This form is ours. NaN where all patches are
    zero.

    Caveat: noise is detail to it: unrelated patches with mean 0 score 0.75 for 14 x 14 patches. An offset that all
    patches share, such as a bias, can lower it though they differ as before.

    Args:
        cutoff: in [0, 1).

    Raises:
        InputError: a cutoff out of range.
    """
    if not 0 <= cutoff < 1:
        raise InputError(f"cutoff={cutoff} must lie in [0, 1), in units of the Nyquist frequency.")
    patches = tokens[..., grid.patches, :]
    low = torch.kron(*(_low_waves(n, cutoff) for n in (grid.rows, grid.cols))).to(tokens)
    total = patches.square().sum((-2, -1))
    return (total - (low.mT @ patches).square().sum((-2, -1))).clamp_min(0) / total  # below 0 by rounding only


def _low_waves(n: int, cutoff: float) -> Tensor:
    """[n, wave], float64: an orthonormal basis of what n places in a row hold at no more than the cutoff."""
    place = torch.arange(n, dtype=torch.float64)
    waves = [torch.full((n,), n**-0.5, dtype=torch.float64)]
    for f in range(1, n // 2 + 1):
        if 2 * f / n <= cutoff:
            angle = 2 * math.pi * f * place / n
            waves += [(2 / n) ** 0.5 * angle.cos(), (2 / n) ** 0.5 * angle.sin()]
    return torch.stack(waves, 1)
