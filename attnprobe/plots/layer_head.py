"""Which head of which block? One square per head."""

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


def layer_head(
    m: Measurement,
    ax: Axes | None = None,
    *,
    limits: Limits | None = None,
    title: str | None = None,
    colorbar: bool = True,
) -> Axes:
    """Draw a measurement over (layer, head) with depth from left to right.

    Of (layer, head, prefix) the sum over the prefix tokens is drawn: what all of them get together.
    Arguments and errors as in `layer_matrix`.
    """
    require_axes(m, "layer_head", ("layer", "head"), ("layer", "head", "prefix"))
    values = m.mean if m.mean.ndim == 2 else m.mean.sum(-1)
    blocks, heads = values.shape
    ax = new_axes(5.2, 1.9 + 0.16 * max(heads, 6)) if ax is None else ax
    scale = colours(limits or shared_limits([m]))
    ax.imshow(values.T, origin="lower", aspect="auto", **scale._asdict())
    number_from_one(ax.xaxis, blocks, kept=m.coords.get("layer"))
    number_from_one(ax.yaxis, heads, most=6, kept=m.coords.get("head"))
    ax.set(xlabel="block", ylabel="head")
    return finish(ax, m, scale, title, colorbar, values)
