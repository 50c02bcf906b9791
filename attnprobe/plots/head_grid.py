"""Which heads of a block do the same? One small square matrix per block."""

from matplotlib.axes import Axes

from attnprobe.core.measurement import Measurement
from attnprobe.plots.style import (
    Limits,
    colours,
    finish,
    new_axes,
    require_axes,
    shared_limits,
)
from attnprobe.plots.tiles import Tiles


def head_grid(
    m: Measurement,
    ax: Axes | None = None,
    *,
    limits: Limits | None = None,
    title: str | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw a measurement over (layer, head, head): a panel per block, head 1 at its top left.

    Arguments and errors as in `layer_matrix`.
    """
    require_axes(m, "head_grid", ("layer", "head", "head"))
    tiles = Tiles(len(m.mean))
    ax = new_axes(5.2, 0.8 + 4.0 * tiles.size[1] / tiles.size[0]) if ax is None else ax
    scale = colours(limits or shared_limits([m]))
    tiles.prepare(ax, [str(block + 1) for block in range(tiles.n)])
    for block, matrix in enumerate(m.mean):
        ax.imshow(matrix, extent=tiles.extent(block), aspect="equal", **scale._asdict())
    return finish(ax, m, scale, title, colorbar, shrink=0.8)
