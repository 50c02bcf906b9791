"""Target maps: those of a convolution with a single one in its kernel."""

import torch
from torch import Tensor

from attnprobe.core.errors import ShapeError

AUTHORS_ORDER = (4, 1, 5, 3, 7, 0, 2, 6, 8)
"""Codes of the 3 x 3 window as heads get them in the closed form: centre, up, right, left, down, then corners."""


def offset(code: int, kernel: int) -> tuple[int, int]:
    """Row and column offset of the code-th place in a kernel x kernel window, read row by row, from its centre."""
    return code // kernel - kernel // 2, code % kernel - kernel // 2


def shifts(rows: int, cols: int, offsets: Tensor) -> Tensor:
    """Maps in which every query attends to the one key at an offset on the grid.

    Args:
        rows, cols: patches.
        offsets: [any, 2], rows down and columns right, integers.

    Returns:
        [any, query, key] of zeros and ones, float32 on the CPU. Where the key would lie outside the grid the query's
        row is zero: the zero padding of a convolution.
    """
    row, col = torch.meshgrid(torch.arange(rows, device="cpu"), torch.arange(cols, device="cpu"), indexing="ij")
    places = torch.stack([row.flatten(), col.flatten()], dim=-1)
    wanted = places[:, None] + offsets.cpu()[:, None, None]  # [any, query, 1, 2]
    return (wanted == places).all(-1).float()


def impulse_targets(rows: int, cols: int, kernel: int) -> Tensor:
    """The map of every place in the window, [kernel * kernel, query, key]; see `shifts` and `offset`."""
    return shifts(rows, cols, torch.tensor([offset(code, kernel) for code in range(kernel**2)], device="cpu"))


def drawn_offsets(heads: int, kernel: int) -> Tensor:
    """[head, 2]: each head's place drawn from the window, with repeats."""
    codes = torch.randint(0, kernel**2, (heads,), device="cpu")
    return torch.stack([codes // kernel, codes % kernel], dim=-1) - kernel // 2


def ordered_offsets(heads: int, kernel: int) -> Tensor:
    """[head, 2]: places nearest to the centre first, and again from the start if there are more heads than places."""
    by_distance = sorted(range(kernel**2), key=lambda code: sum(step**2 for step in offset(code, kernel)))
    order = AUTHORS_ORDER if kernel == 3 else by_distance
    return torch.tensor([offset(order[head % len(order)], kernel) for head in range(heads)], device="cpu")


def check_window(rows: int, cols: int, kernel: int) -> None:
    """Raises ShapeError if some place of the window lies outside the grid for every query."""
    if kernel // 2 >= min(rows, cols):
        raise ShapeError(
            f"impulse{kernel} reaches {kernel // 2} patches from the query, past a grid of {rows} x {cols}: "
            f"such heads would have no target. The largest window here is {2 * min(rows, cols) - 1}."
        )
