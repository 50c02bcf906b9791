"""Attention that the class token and registers receive."""

from typing import Any

from torch import Tensor

from attnprobe.core.maps import TokenGrid
from attnprobe.core.metric import metric


def prefix_names(grid: TokenGrid, **_: Any) -> dict[str, list[Any]]:
    """Labels of the axis "prefix"."""
    return {"prefix": list(grid.prefix)}


@metric(
    axes=("layer", "head", "prefix"), value_range=(0.0, 1.0), needs_stochastic=True, needs_prefix=True,
    coords=prefix_names,
)  # fmt: skip
def prefix_mass(maps: Tensor, grid: TokenGrid) -> Tensor:
    """Mean attention that each prefix token receives, over all queries.

        P[l, h, t] = mean over i of A[l, h, i, t],      t a class token or register

    All queries count, the prefix tokens themselves included. Uniform attention gives 1/K. Attention sinks, heads that
    leave most of their mass on one such token: arXiv:2410.10781; registers: arXiv:2309.16588.
    Caveat: a weight does not say what arrives, for a token that draws much attention can have a small value; see
    `value_weighted_prefix_mass`.
    """
    return maps[..., : grid.n_prefix].mean(-2)
