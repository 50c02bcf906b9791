"""How many images are enough?"""

import math

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from attnprobe.core.examined import Precision
from attnprobe.plots.style import legend, line_label, new_axes


def precision_curve(p: Precision, ax: Axes | None = None, *, label: str = "", **line) -> Axes:
    """Draw the 95 % interval that a number has on more and more images. Call again to add a run.

    Args:
        p: from `images_needed`.
        ax: where; a new figure if None.
        label: name in the legend; the number if empty.
        line: passed to `Axes.plot`, such as color.
    """
    ax = new_axes(5.2, 3.4) if ax is None else ax
    options = {"linewidth": 1.5, **line}
    (drawn,) = ax.plot(p.sizes, [p.value] * len(p.sizes), label=line_label(label or p.of), **options)
    ax.fill_between(p.sizes, p.low, p.high, color=drawn.get_color(), alpha=0.2, linewidth=0)
    ax.plot(p.n_images, p.value, "o", color=drawn.get_color(), markersize=5)
    if math.isfinite(p.value) and not (p.high > p.low).any() and len(ax.collections) == 1:
        below = 0.05 if 0 <= p.value < 1 else 1  # no count is negative
        ax.set_ylim(p.value - below, p.value + 1)  # as sure as can be on any number of images
    ax.set_xscale("log", base=2)
    drawn_sizes = np.concatenate([np.asarray(other.get_xdata(), dtype=int).ravel() for other in ax.get_lines()])
    sizes = [int(size) for size in np.unique(drawn_sizes) if size & (size - 1) == 0]
    step = -(-len(sizes) // 7)
    ax.xaxis.set_major_locator(FixedLocator(sizes[::step]))
    ax.xaxis.set_major_formatter("{x:.0f}")
    ax.xaxis.set_minor_locator(NullLocator())
    ax.set(xlabel="images", ylabel=p.of)
    legend(ax)
    return ax
