"""Measurement -> Axes: a plot is chosen by the axes of what it draws, not by the metric.

Question: a plot per metric, or per kind of axes? Choice: per axes, so that a new metric has a figure at once and the
same axes always look the same. Reconsider for a metric whose figure needs more than its values.
Question: pyplot? Choice: only to open a figure where the caller gives no Axes, because notebooks then show it; no
global state changes, and a report draws hundreds of figures without leaving any open.
Question: what would mislead? Counting blocks from 0 where papers count from 1; colours scaled to each figure's
own extremes, which make noise look like structure. So blocks start at 1, and colours span the metric's range.
"""

from collections.abc import Callable, Mapping

from matplotlib.axes import Axes

from attnprobe.core.errors import InputError, ShapeError
from attnprobe.core.figures import FIGURES
from attnprobe.core.measurement import Measurement
from attnprobe.core.registry import Registry
from attnprobe.plots.attention_grid import attention_grid
from attnprobe.plots.curves import precision_curve, removal_curve, similar_fraction, threshold_curve
from attnprobe.plots.depth import depth_curve, head_scatter
from attnprobe.plots.head_atlas import head_atlas
from attnprobe.plots.head_embedding import head_embedding
from attnprobe.plots.head_map import head_map, sliders
from attnprobe.plots.heat_maps import head_grid, layer_head, layer_key, layer_matrix
from attnprobe.plots.history import filmstrip, onset
from attnprobe.plots.map_strip import map_strip
from attnprobe.plots.style import shared_limits

PLOTS: Registry[Callable[..., Axes]] = Registry(
    "plot",
    layer_matrix, depth_curve, threshold_curve, similar_fraction, layer_head, head_scatter, head_grid,
    head_embedding, head_atlas, layer_key, attention_grid, filmstrip, onset, lister="attnprobe list plots")  # fmt: skip
"""Functions that draw a measurement, several, an image or a history; `core.figures` says which of them draws what."""


def plot(m: Measurement, ax: Axes | None = None) -> Axes:
    """Draw a measurement with the plot for its axes; a new figure if `ax` is None.

    Raises:
        ShapeError: no plot draws such axes.
        InputError: several measurements, or something else.
    """
    if not isinstance(m, Measurement):
        names = [str(name) for name in m] if isinstance(m, Mapping) else []
        remedy = f" name one, such as plot(result[{names[0]!r}])" if names else " ap.measure gives some"
        raise InputError(f"plot draws one Measurement, got {type(m).__name__};{remedy}.")
    for kind in FIGURES.values():
        if m.axes in kind.axes:
            return PLOTS[kind.name](m, ax)
    known = "; ".join(", ".join(axes) for kind in FIGURES.values() for axes in kind.axes)
    raise ShapeError(f"no plot draws axes ({', '.join(m.axes)}) of {m.metric!r}; there are plots for {known}.")


__all__ = [
    "PLOTS", "head_map", "map_strip", "plot", "precision_curve", "removal_curve", "shared_limits", "sliders", *PLOTS,
]  # fmt: skip
