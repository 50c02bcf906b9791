"""Measurement -> Axes: a plot is chosen by the axes of what it draws, not by the metric.

Question: a plot per metric, or per kind of axes? Choice: per axes, so that a new metric has a figure at once and the
same axes always look the same. Reconsider for a metric whose figure needs more than its values.
Question: pyplot? Choice: only to open a figure where the caller gives no Axes, because notebooks then show it; no
global state changes, and a report draws hundreds of figures without leaving any open.
Question: what would mislead? Counting blocks from 0 beside papers that count from 1; colours scaled to each figure's
own extremes, which make noise look like structure. So blocks start at 1, and colours span the metric's range.
"""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.axes import Axes

from attnprobe.core.errors import ShapeError
from attnprobe.core.measurement import Measurement
from attnprobe.core.registry import Registry
from attnprobe.plots.attention_grid import attention_grid
from attnprobe.plots.depth_curve import depth_curve
from attnprobe.plots.filmstrip import filmstrip
from attnprobe.plots.head_atlas import head_atlas
from attnprobe.plots.head_embedding import head_embedding
from attnprobe.plots.head_grid import head_grid
from attnprobe.plots.head_scatter import head_scatter
from attnprobe.plots.layer_head import layer_head
from attnprobe.plots.layer_key import layer_key
from attnprobe.plots.layer_matrix import layer_matrix
from attnprobe.plots.map_strip import map_strip
from attnprobe.plots.onset import onset
from attnprobe.plots.precision_curve import precision_curve
from attnprobe.plots.removal_curve import removal_curve
from attnprobe.plots.similar_fraction import similar_fraction
from attnprobe.plots.style import shared_limits
from attnprobe.plots.threshold_curve import threshold_curve


@dataclass(frozen=True, slots=True)
class Plot:
    """A function that draws a measurement (or several), and the axes for which it is the first choice."""

    function: Callable[..., Axes]
    axes: tuple[tuple[str, ...], ...]

    @property
    def name(self) -> str:
        return self.function.__name__


PLOTS: Registry[Plot] = Registry(
    "plot",
    Plot(layer_matrix, (("layer", "layer"),)),
    Plot(depth_curve, (("layer",),)),
    Plot(layer_head, (("layer", "head"), ("layer", "head", "prefix"))),
    Plot(head_grid, (("layer", "head", "head"),)),
    Plot(threshold_curve, (("threshold", "layer"),)),
    Plot(head_embedding, (("layer", "head", "layer", "head"),)),
    Plot(layer_key, (("layer", "key"),)),
    Plot(head_atlas, (("layer", "head", "type"),)),
    Plot(head_scatter, ()),
    Plot(similar_fraction, ()),
)


def plot(m: Measurement, ax: Axes | None = None) -> Axes:
    """Draw a measurement with the plot for its axes; a new figure if `ax` is None.

    Raises:
        ShapeError: no plot draws such axes.
    """
    for candidate in PLOTS.values():
        if m.axes in candidate.axes:
            return candidate.function(m, ax)
    known = "; ".join(", ".join(axes) for candidate in PLOTS.values() for axes in candidate.axes)
    raise ShapeError(f"no plot draws axes ({', '.join(m.axes)}) of {m.metric!r}; there are plots for {known}.")


__all__ = [
    "PLOTS",
    "Plot",
    "attention_grid",
    "depth_curve",
    "filmstrip",
    "head_atlas",
    "head_embedding",
    "head_grid",
    "head_scatter",
    "layer_head",
    "layer_key",
    "layer_matrix",
    "map_strip",
    "onset",
    "plot",
    "precision_curve",
    "removal_curve",
    "shared_limits",
    "similar_fraction",
    "threshold_curve",
]
