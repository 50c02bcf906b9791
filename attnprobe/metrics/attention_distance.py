"""Attention over the patch grid: its distance in pixels, and its share within a patch's own row or column."""

import torch
from torch import Tensor

from attnprobe.core.grid import TokenGrid
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
    row, col = _coordinates(grid).double()
    centres = torch.stack([row * grid.patch[0], col * grid.patch[1]], -1)
    return _weighted(maps, grid, torch.linalg.vector_norm(centres[:, None] - centres, dim=-1))


def _coordinates(grid: TokenGrid) -> Tensor:
    """[2, patch]: row and column of each token that is a patch."""
    position = torch.tensor(grid.patch_positions)
    return torch.stack([position // grid.cols, position % grid.cols])


def _weighted(maps: Tensor, grid: TokenGrid, pairs: Tensor) -> Tensor:
    """[image, layer, head]: mean over query patches of the mean of `pairs`, [patch, patch], weighted by attention.

    Queries that put nothing on patches are left out; NaN where all do.
    """
    pairs, layers = pairs.to(maps), []
    for layer in maps.unbind(1):
        weights = layer[..., grid.patches, :][..., grid.patches]
        mass = weights.sum(-1)
        attends = mass != 0
        of_queries = (weights * pairs).sum(-1) / torch.where(attends, mass, 1.0)
        layers.append(of_queries.sum(-1) / attends.sum(-1))
    return torch.stack(layers, 1)


@metric(axes=("layer", "head"), value_range=(0.0, 1.0), needs_stochastic=True)
def own_row_mass(maps: Tensor, grid: TokenGrid) -> Tensor:
    """Share of a patch's attention to patches that stays in its own row of the image, mean over patches.

        W[l, h] = mean over patches i of  sum_{j in row of i} A[i, j] / sum_j A[i, j],      j over patches

    1/rows for uniform attention. Ours, for `head_types`. A query that puts nothing on patches is left out (NaN if all
    do).
    Caveat: each patch is part of its own row, so a head of patches that attend to themselves scores 1, in
    `own_column_mass`, too. What a head leaves to patches counts in full, however little it is.
    """
    row = _coordinates(grid)[0]
    return _weighted(maps, grid, row[:, None] == row)


@metric(axes=("layer", "head"), value_range=(0.0, 1.0), needs_stochastic=True)
def own_column_mass(maps: Tensor, grid: TokenGrid) -> Tensor:
    """Share of a patch's attention to patches that stays in its own column of the image, mean over patches.

        W[l, h] = mean over patches i of  sum_{j in column of i} A[i, j] / sum_j A[i, j],      j over patches

    1/columns for uniform attention; otherwise as `own_row_mass`. Ours.
    Caveat: each patch is part of its own column, so a head of patches that attend to themselves scores 1, in
    `own_row_mass`, too.
    """
    col = _coordinates(grid)[1]
    return _weighted(maps, grid, col[:, None] == col)
