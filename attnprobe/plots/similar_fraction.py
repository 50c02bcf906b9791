"""Do deeper networks repeat themselves more? The share of similar blocks against the number of blocks."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from attnprobe.core.errors import InputError
from attnprobe.core.measurement import Measurement
from attnprobe.plots.style import legend, line_label, new_axes, require_axes
from attnprobe.stats.blocks import without_partner


def similar_fraction(
    measurements: Sequence[Measurement], ax: Axes | None = None, *, label: str = "", baselines: bool = True, **line
) -> Axes:
    """Draw one point per network: similar blocks among all that could be, with the 95 % interval over images.

    Call again to add another family of networks.

    Args:
        measurements: of `similar_blocks` at equal settings, one per network, in any order.
        ax: where; a new figure if None.
        label: the family's name in the legend.
        baselines: draw the untrained networks too, where they were measured.
        line: passed to `Axes.plot`, such as color or linestyle.

    Raises:
        ShapeError: another metric's axes.
        InputError: no network, or other settings in one of them than in the others.
    """
    if not measurements:
        raise InputError("similar_fraction draws one point per network, got none.")
    for m in measurements:
        require_axes(m, "similar_fraction", ("threshold", "layer"))
        if (m.settings["tau"], m.settings["rho"]) != (measurements[0].settings["tau"], measurements[0].settings["rho"]):
            raise InputError("similar_fraction compares counts at one tau and rho, got several.")
    ax = new_axes(5.2, 3.4) if ax is None else ax
    measurements = sorted(measurements, key=lambda m: m.mean.shape[-1])
    depth = np.array([m.mean.shape[-1] for m in measurements])
    share, low, high = (np.array(values) for values in zip(*map(_share, measurements), strict=True))
    options = {"marker": "o", "markersize": 4, "linewidth": 1.5, **line}
    (drawn,) = ax.plot(depth, share, label=line_label(label or "trained"), **options)
    colour = drawn.get_color()
    ax.vlines(depth, low, high, color=colour, linewidth=1.5)
    untrained = [m.baselines.get("untrained") for m in measurements]
    if baselines and all(base is not None for base in untrained):
        shares = [_share(base)[0] for base in untrained if base is not None]
        ax.plot(depth, shares, label="untrained", color=colour, linestyle=":", marker=".", linewidth=1.2)
    tau, rho = measurements[0].settings["tau"], measurements[0].settings["rho"]
    ax.set_xticks(sorted({*(int(d) for d in depth), *_ticks_of_earlier(ax)}))
    ax.set(xlabel="blocks", ylabel=f"similar blocks (cosine > {tau}\nin over {rho:.0%} of vectors)", ylim=(-0.03, 1.03))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    legend(ax)
    return ax


def _share(m: Measurement) -> tuple[float, float, float]:
    """Similar blocks among those that have another to be compared with, and the interval."""
    possible = m.mean.shape[-1] - (without_partner(m) is not None)
    low, high = m.summary.get("count_ci", (m.summary["count"],) * 2)
    return m.summary["count"] / possible, low / possible, high / possible


def _ticks_of_earlier(ax: Axes) -> set[int]:
    """The depths that are drawn already."""
    return {int(x) for drawn in ax.get_lines() for x in np.atleast_1d(drawn.get_xdata())}
