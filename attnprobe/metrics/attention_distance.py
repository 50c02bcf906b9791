"""Attention over the patch grid: its distance in pixels, and its share within a patch's own row or column."""

import torch
from torch import Tensor

from attnprobe.core.grid import TokenGrid
from attnprobe.core.metric import metric
from attnprobe.core.sharing import shared


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
    return _of_patches(maps, grid)["distance"]


@metric(axes=("layer", "head"), value_range=(0.0, 1.0), needs_stochastic=True)
def own_row_mass(maps: Tensor, grid: TokenGrid) -> Tensor:
    """Share of a patch's attention to patches that stays in its own row of the image, mean over patches.

        W[l, h] = mean over patches i of  sum_{j in row of i} A[i, j] / sum_j A[i, j],      j over patches

    1/rows for uniform attention. Ours, for `head_types`. A query that puts nothing on patches is left out (NaN if all
    do).
    Caveat: each patch is part of its own row, so a head of patches that attend to themselves scores 1, in
    `own_column_mass`, too. What a head leaves to patches counts in full, however little it is.
    """
    return _of_patches(maps, grid)["row"]


@metric(axes=("layer", "head"), value_range=(0.0, 1.0), needs_stochastic=True)
def own_column_mass(maps: Tensor, grid: TokenGrid) -> Tensor:
    """Share of a patch's attention to patches that stays in its own column of the image, mean over patches.

        W[l, h] = mean over patches i of  sum_{j in column of i} A[i, j] / sum_j A[i, j],      j over patches

    1/columns for uniform attention; otherwise as `own_row_mass`. Ours.
    Caveat: each patch is part of its own column, so a head of patches that attend to themselves scores 1, in
    `own_row_mass`, too.
    """
    return _of_patches(maps, grid)["column"]


@shared
def _of_patches(maps: Tensor, grid: TokenGrid) -> dict[str, Tensor]:
    """[image, layer, head] for each of `_pairs`: mean over query patches of its mean, weighted by attention.

    All from one product with the maps as they are in memory. Queries that put nothing on patches are left out; NaN
    where all do.
    """
    pairs = _pairs(grid)
    patches = torch.arange(grid.n_tokens)[grid.patches]
    columns = torch.zeros(*maps.shape[-2:], 1 + len(pairs), dtype=torch.float64)
    columns[patches[:, None], patches] = torch.stack([torch.ones_like(pairs["row"]), *pairs.values()], -1)
    sums = maps.flatten(0, 2).transpose(0, 1) @ columns.to(maps)  # [query, image x layer x head, column]
    mass, of_queries = sums[grid.patches].unflatten(1, maps.shape[:3]).split([1, len(pairs)], -1)
    attends = mass != 0
    means = (of_queries / torch.where(attends, mass, 1.0)).sum(0) / attends.sum(0)
    return dict(zip(pairs, means.unbind(-1), strict=True))


def _pairs(grid: TokenGrid) -> dict[str, Tensor]:
    """[patch, patch], float64: distance of two patches in pixels, and 1 where they share a row or a column."""
    position = torch.tensor(grid.patch_positions)
    row, col = position // grid.cols, position % grid.cols
    centres = torch.stack([row * grid.patch[0], col * grid.patch[1]], -1).double()
    distance = torch.linalg.vector_norm(centres[:, None] - centres, dim=-1)
    return {"distance": distance, "row": (row[:, None] == row).double(), "column": (col[:, None] == col).double()}
