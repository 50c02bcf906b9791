"""Attention that stays in a patch's own row or column of the image."""

import torch
from torch import Tensor

from attnprobe.core.maps import TokenGrid
from attnprobe.core.metric import metric


@metric(axes=("layer", "head"), value_range=(0.0, 1.0), needs_stochastic=True)
def own_row_mass(maps: Tensor, grid: TokenGrid) -> Tensor:
    """Share of a patch's attention to patches that stays in its own row of the image, mean over patches.

        W[l, h] = mean over patches i of  sum_{j in row of i} A[i, j] / sum_j A[i, j],      j over patches

    1/rows for uniform attention. Ours, for `head_types`. A query that puts nothing on patches is left out (NaN if all
    do).
    Caveat: each patch is part of its own row, so a head of patches that attend to themselves scores 1, in
    `own_column_mass`, too. What a head leaves to patches counts in full, however little it is.
    """
    return _share(maps, grid, "...rcrk->...rc")


@metric(axes=("layer", "head"), value_range=(0.0, 1.0), needs_stochastic=True)
def own_column_mass(maps: Tensor, grid: TokenGrid) -> Tensor:
    """Share of a patch's attention to patches that stays in its own column of the image, mean over patches.

        W[l, h] = mean over patches i of  sum_{j in column of i} A[i, j] / sum_j A[i, j],      j over patches

    1/columns for uniform attention; otherwise as `own_row_mass`. Ours.
    Caveat: each patch is part of its own column, so a head of patches that attend to themselves scores 1, in
    `own_row_mass`, too.
    """
    return _share(maps, grid, "...rcsc->...rc")


def _share(maps: Tensor, grid: TokenGrid, line: str) -> Tensor:
    patches, sides = slice(grid.n_prefix, None), (grid.rows, grid.cols)
    layers = []
    for layer in maps.unbind(1):
        weights = layer[..., patches, patches]
        mass = weights.sum(-1)
        inside = torch.einsum(line, weights.unflatten(-1, sides).unflatten(-3, sides)).flatten(-2)
        looks = mass != 0
        layers.append((inside / torch.where(looks, mass, 1.0)).sum(-1) / looks.sum(-1))
    return torch.stack(layers, 1)
