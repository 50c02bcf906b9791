"""Style of all figures: blocks counted from 1, colours that everybody can tell apart, one scale."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.lines import Line2D
from numpy.typing import ArrayLike

from attnprobe.core.errors import ShapeError
from attnprobe.core.measurement import Measurement

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe & Ito's palette without black and yellow, which vanish on a dark or a light page."""

MISSING = "#9a9a9a"
"""The colour of a cell that has no finite value."""

GREY = "#808080"
"""Reference lines and uniform attention: legible on a light and on a dark page."""


Limits = tuple[float, float]


def new_axes(width: float, height: float) -> Axes:
    """Axes of a new figure of this many inches, which notebooks show by themselves."""
    from matplotlib import pyplot  # picks a backend, which callers with an Axes of their own need not

    ax = pyplot.figure(figsize=(width, height), layout="constrained").add_subplot()
    ax.set_prop_cycle(color=COLOURS)
    return ax


def require_axes(m: Measurement, plot: str, *allowed: tuple[str, ...]) -> None:
    """Raises ShapeError unless the measurement has axes that this plot draws."""
    if m.axes not in allowed:
        wanted = " or ".join(f"({', '.join(axes)})" for axes in allowed)
        raise ShapeError(
            f"{plot} draws axes {wanted}, but {m.metric!r} has ({', '.join(m.axes)}); attnprobe.plot picks by axes."
        )


def quantity(m: Measurement) -> str:
    """The metric's name with its unit, for an axis."""
    return m.metric.replace("_", " ") + (f" [{m.unit}]" if m.unit else "")


def heading(m: Measurement) -> str:
    """Two short lines: what was measured; where, on how many images."""
    return f"{m.metric.replace('_', ' ')}\n{m.place}, mean of {m.n_images} images"


def number_from_one(
    axis: Axis, n: int, most: int = 12, kept: Sequence[int] | None = None, start: float = 0, step: float = 1
) -> None:
    """Number n things along an axis from 1: all if at most `most`, else 1 and every 4th, 8th or 16th.

    Args:
        kept: the numbers to write instead of 1 .. n, where not all blocks or heads are there.
        start, step: where the first thing is on the axis, and how far it is from one to the next.
    """
    every = 1
    if n > most:
        every = 4
        while n / every > 6:
            every *= 2
    numbers = [1, *range(every, n + 1, every)] if every > 1 else list(range(1, n + 1))
    labels = [str(number if kept is None else kept[number - 1]) for number in numbers]
    axis.set_ticks([start + (number - 1) * step for number in numbers], labels=labels)


def without_frame(ax: Axes) -> None:
    """Hide spines and tick marks; labels stay."""
    ax.tick_params(length=0)
    for spine in ax.spines.values():
        spine.set_visible(False)


def shared_limits(measurements: Sequence[Measurement]) -> Limits:
    """Common colour range: their value range, the extremes of their means where it is open.

    A signed range starts at 0 if nothing is below -0.1: means of unrelated maps scatter a little around 0, and half
    of the colours would go unused.
    """
    values = np.concatenate([m.mean[np.isfinite(m.mean)] for m in measurements])
    smallest, largest = (values.min(), values.max()) if values.size else (0.0, 1.0)
    lows, highs = zip(*(m.value_range for m in measurements), strict=True)
    low = smallest if None in lows else min(lows)
    high = largest if None in highs else max(highs)
    if low < 0 and smallest >= -0.1:
        low = 0.0
    return float(low), float(high if high > low else low + 1)


def limits_from_zero(values: np.ndarray) -> Limits:
    """From 0, or from the lowest value if that is below, to the highest; not finite ones do not count."""
    seen = values[np.isfinite(values)]
    low, high = (min(0.0, float(seen.min())), float(seen.max())) if seen.size else (0.0, 1.0)
    return low, high if high > low else low + 1


class Scale(NamedTuple):
    """Value -> colour, as `Axes.imshow(..., **scale._asdict())` takes it."""

    norm: Normalize
    cmap: Colormap


def colours(limits: Limits) -> Scale:
    """Value -> colour: viridis, or red and blue around a white 0 where the range has both signs."""
    low, high = limits
    name = "viridis"
    if low < 0 < high:
        name, high = "RdBu_r", max(-low, high)
        low = -high
    return Scale(Normalize(low, high), colormaps[name].with_extremes(bad=MISSING))


def colour_bar(ax: Axes | Sequence[Axes], scale: Scale, label: str, values: np.ndarray, **options) -> None:
    """Add a colour bar to `ax`, with arrows where `values` leave the scale."""
    places = np.asarray(scale.norm(values[np.isfinite(values)]))  # 0 and 1 at the ends of the scale
    below, above = np.any(places < -1e-5), np.any(places > 1 + 1e-5)  # a cosine of 1 and its rounding is no arrow
    extend = "both" if below and above else "min" if below else "max" if above else "neither"
    figure = (ax if isinstance(ax, Axes) else ax[0]).figure
    figure.colorbar(ScalarMappable(**scale._asdict()), ax=ax, label=label, extend=extend, **options)


def finish(
    ax: Axes, scale: Scale, values: np.ndarray, label: str, title: str, colorbar: bool = True, **options
) -> Axes:
    """Add the title and the colour bar of `values`; `options` of `Figure.colorbar`."""
    ax.set_title(title, fontsize="medium", parse_math=False)
    if colorbar:
        colour_bar(ax, scale, label, values, **options)
    return ax


def band(ax: Axes, x: ArrayLike, bounds: tuple[ArrayLike, ArrayLike], colour: Any) -> None:
    """Fill between the bounds of an interval, in the colour of its line."""
    ax.fill_between(x, *bounds, color=colour, alpha=0.2, linewidth=0)


UNTRAINED: dict[str, Any] = {"linestyle": ":", "linewidth": 1.2, "marker": "s", "markersize": 6,
                             "markerfacecolor": "none", "markeredgewidth": 0.8}  # fmt: skip
"""Line of the untrained network, with hollow squares: the model's own may lie on it, in the same colour."""

MOST_SQUARES = 8
"""Squares along a line; more would hide the model's line where the two are near."""


def untrained_line(ax: Axes, x: Any, y: Any, colour: Any) -> None:
    """Draw the numbers of the untrained network."""
    every = -(-len(x) // MOST_SQUARES) if len(x) > 2 * MOST_SQUARES else 1
    ax.plot(x, y, label="untrained", color=colour, markevery=every, **UNTRAINED)


def baseline_lines(ax: Axes, m: Measurement, points: Callable[[Measurement], tuple[Any, Any]], colour: Any) -> None:
    """Draw "untrained" (dotted, in this colour) and "uniform" (dash-dotted, grey) where they were measured.

    Args:
        points: a baseline -> its x and y.
    """
    if "untrained" in m.baselines:
        untrained_line(ax, *points(m.baselines["untrained"]), colour)
    if "uniform" in m.baselines:
        ax.plot(*points(m.baselines["uniform"]), label="uniform", color=GREY, linestyle="-.", linewidth=1.2)


def line_label(name: str) -> str:
    """A name that the legend shows: matplotlib leaves out those that start with an underscore."""
    return f" {name}" if name.startswith("_") else name


def _grey(line: Line2D) -> Line2D:
    """A line that looks alike, without its numbers and colour."""
    other = Line2D([], [])
    other.update_from(line)
    other.set_color(GREY)
    other.set_markeredgecolor(GREY)
    return other


def legend(ax: Axes) -> None:
    """Name the lines above the Axes, each name once; in grey where lines of one name differ in colour."""
    lines: dict[str, Line2D] = {}
    for line in ax.get_lines():
        name = str(line.get_label())
        if name.startswith("_"):
            continue
        if name in lines and line.get_color() != lines[name].get_color():
            lines[name] = _grey(line)
        lines.setdefault(name, line)
    box = ax.legend(
        list(lines.values()),
        list(lines),
        loc="lower left",
        bbox_to_anchor=(0, 1.01),
        ncols=2 if max(map(len, lines)) <= 30 else 1,
        fontsize="small",
        frameon=False,
        borderaxespad=0,
    )
    for text in box.get_texts():
        text.set_parse_math(False)
