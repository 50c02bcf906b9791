"""Attention over the patch grid: its distance in pixels, and its share within a patch's own row or column."""

import torch
from torch import Tensor

from attnprobe.core.maps import TokenGrid
from attnprobe.core.metric import metric


@metric(axes=("layer", "head"), value_range=(0.0, None), unit="pixels", needs_stochastic=True)
def attention_distance(maps: Tensor, grid: TokenGrid) -> Tensor:
    """Mean distance between a query patch and the patches it attends to, weighted by the attention.

        D[l, h] = mean over patches i of  sum_j A[i, j] |pos_i - pos_j| / sum_j A[i, j],      j over patches

    pos is the centre of a patch in pixels of the model's input, so patches need not be square. Class token and
    registers are dropped as queries and as keys, and each row is scaled back to sum 1 over the patches that remain;
    a query that puts nothing on patches is left out, and a head with only such queries is NaN.
    Dosovitskiy et al. 2021, arXiv:2010.11929; by layer and head: Raghu et al. 2021, arXiv:2108.08810.

    Caveats: uniform attention is far already, 116 pixels for 14 x 14 patches of 16 pixels, so compare with that
    baseline. The mean does not tell a middle distance from near and far, and what a head leaves to patches counts in
    full, however little it is.
    """
    pixels = _distances(grid).to(maps)
    patches = slice(grid.n_prefix, None)
    layers = []
    for layer in maps.unbind(1):
        weights = layer[..., patches, patches]
        layers.append(_mean_share((weights * pixels).sum(-1), weights.sum(-1)))
    return torch.stack(layers, 1)


def _mean_share(part: Tensor, mass: Tensor) -> Tensor:
    """[..., query] -> [...]: mean of part / mass over the queries whose mass is not 0; NaN where there is none."""
    attends = mass != 0
    return (part / torch.where(attends, mass, 1.0)).sum(-1) / attends.sum(-1)


def _distances(grid: TokenGrid) -> Tensor:
    """[patch, patch], pixels between the centres of patches, float64."""
    rows = torch.arange(grid.rows, dtype=torch.float64) * grid.patch[0]
    cols = torch.arange(grid.cols, dtype=torch.float64) * grid.patch[1]
    centres = torch.cartesian_prod(rows, cols).view(-1, 2)
    return torch.linalg.vector_norm(centres[:, None] - centres, dim=-1)


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
        inside = torch.einsum(line, weights.unflatten(-1, sides).unflatten(-3, sides)).flatten(-2)
        layers.append(_mean_share(inside, weights.sum(-1)))
    return torch.stack(layers, 1)
