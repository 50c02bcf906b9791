"""What is changed in a published checkpoint so that it fits the model it is wanted for? The head and the positions."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from attnprobe.core.errors import ShapeError


def resize_positions(
    table: Tensor, grid: tuple[int, int], *, n_prefix: int, old_grid: tuple[int, int] | None = None
) -> Tensor:
    """A learned position table for another grid: bilinear with aligned corners, as DeepViT's and Refiner's code.

    Args:
        table: [1, prefix and patch, width]; entries of prefix tokens (class token, registers) are kept.
        grid: rows and columns wanted.
        n_prefix: how many entries come first and are no patches.
        old_grid: rows and columns of `table`; square if None.

    Raises:
        ShapeError: the table has no square number of patches and `old_grid` is not given, or disagrees with it.
    """
    n_patches = table.shape[1] - n_prefix
    side = math.isqrt(n_patches)
    old_grid = old_grid or (side, side)
    if math.prod(old_grid) != n_patches:
        raise ShapeError(
            f"a position table of {n_patches} patches does not fill a grid of {old_grid[0]} x {old_grid[1]}; "
            "give the grid it was trained with."
        )
    prefix, patches = table[:, :n_prefix], table[:, n_prefix:]
    picture = patches.unflatten(1, old_grid).permute(0, 3, 1, 2)
    resized = F.interpolate(picture.float(), size=grid, mode="bilinear", align_corners=True).to(table.dtype)
    return torch.cat([prefix, resized.permute(0, 2, 3, 1).flatten(1, 2)], dim=1)
