"""Which layers look alike? One square per pair of layers."""

from matplotlib.axes import Axes

from attnprobe.core.measurement import Measurement
from attnprobe.plots.style import (
    Limits,
    colours,
    finish,
    new_axes,
    number_from_one,
    require_axes,
    shared_limits,
)


def layer_matrix(
    m: Measurement,
    ax: Axes | None = None,
    *,
    limits: Limits | None = None,
    title: str | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw a measurement over (layer, layer), the first block at the bottom left.

    Args:
        m: what to draw; the mean over images is shown.
        ax: where; a new figure if None.
        limits: lowest and highest value of the colours; the metric's range if None. Give several figures the same.
        title: replaces the metric's name, site and number of images.
        colorbar: False if several Axes share one.

    Raises:
        ShapeError: other axes.
    """
    require_axes(m, "layer_matrix", ("layer", "layer"))
    ax = new_axes(4.6, 4.2) if ax is None else ax
    scale = colours(limits or shared_limits([m]))
    ax.imshow(m.mean, origin="lower", **scale._asdict())
    for axis in (ax.xaxis, ax.yaxis):
        number_from_one(axis, len(m.mean), kept=m.coords.get("layer"))
    ax.set(xlabel="block", ylabel="block")
    return finish(ax, m, scale, title, colorbar, shrink=0.8)
