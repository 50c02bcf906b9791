"""Curves over a threshold, the depth of a network, the number of images, or the number of removed parts."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from attnprobe.core.errors import InputError, ShapeError
from attnprobe.core.evidence import Evidence
from attnprobe.core.examined import Precision
from attnprobe.core.measurement import Measurement
from attnprobe.plots.style import (
    COLOURS,
    GREY,
    band,
    baseline_lines,
    legend,
    line_label,
    new_axes,
    number_from_one,
    require_axes,
    untrained_line,
)
from attnprobe.stats.blocks import without_partner


def threshold_curve(m: Measurement, ax: Axes | None = None, *, label: str = "", baselines: bool = True, **line) -> Axes:
    """Draw the number of similar blocks against the threshold of the cosine, with its 95 % interval.

    Arguments as in `depth_curve`; call again to add a run. A thin line marks the threshold chosen.

    Raises:
        ShapeError: other axes, or a measurement without the summary of `similar_blocks`.
    """
    require_axes(m, "threshold_curve", ("threshold", "layer"))
    if "curve" not in m.summary:
        raise ShapeError(f"threshold_curve draws the summary of similar_blocks, which {m.metric!r} does not have.")
    ax = new_axes(5.2, 3.4) if ax is None else ax
    curve = m.summary["curve"]
    options = {"linewidth": 1.5, **line}
    (drawn,) = ax.plot(curve["threshold"], curve["count"], label=line_label(label or "similar blocks"), **options)
    if None not in curve["low"]:
        band(ax, curve["threshold"], (curve["low"], curve["high"]), drawn.get_color())
    if baselines:
        colour = drawn.get_color()
        baseline_lines(ax, m, lambda b: (b.summary["curve"]["threshold"], b.summary["curve"]["count"]), colour)
    if isinstance(m.summary["tau"], float | int):
        ax.axvline(m.summary["tau"], color=GREY, linewidth=0.8)
    ax.set(xlabel="threshold of the cosine (tau)", ylabel=f"similar blocks (share > {m.summary['rho']})")
    ax.set_ylim(bottom=-0.02 * m.summary["of"], top=max(1.02 * m.summary["of"], ax.get_ylim()[1]))
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    legend(ax)
    return ax


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
        untrained_line(ax, depth, shares, colour)
    tau, rho = measurements[0].settings["tau"], measurements[0].settings["rho"]
    drawn_depths = np.concatenate([np.atleast_1d(line.get_xdata()) for line in ax.get_lines()])
    ax.set_xticks(np.unique(drawn_depths.astype(int)))
    ax.set(xlabel="blocks", ylabel=f"similar blocks (cosine > {tau}\nin over {rho:.0%} of vectors)", ylim=(-0.03, 1.03))
    ax.yaxis.set_major_formatter(PercentFormatter(1))
    legend(ax)
    return ax


def _share(m: Measurement) -> tuple[float, float, float]:
    """Share of similar blocks among those that are compared with another, and its interval."""
    possible = m.mean.shape[-1] - (without_partner(m) is not None)
    low, high = m.summary.get("count_ci", (m.summary["count"],) * 2)
    return m.summary["count"] / possible, low / possible, high / possible


def precision_curve(p: Precision, ax: Axes | None = None, *, label: str = "", **line) -> Axes:
    """Draw the 95 % interval of a number against the number of images. Call again to add a run.

    Args:
        p: from `images_needed`.
        ax: where; a new figure if None.
        label: name in the legend; the number if empty.
        line: passed to `Axes.plot`, such as color.
    """
    ax = new_axes(5.2, 3.4) if ax is None else ax
    options = {"linewidth": 1.5, **line}
    (drawn,) = ax.plot(p.sizes, [p.value] * len(p.sizes), label=line_label(label or p.of), **options)
    band(ax, p.sizes, (p.low, p.high), drawn.get_color())
    ax.plot(p.n_images, p.value, "o", color=drawn.get_color(), markersize=5)
    ax.set_autoscaley_on(True)  # an earlier run may have set limits of its own
    low, high = ax.dataLim.intervaly
    if math.isfinite(low) and low == high:  # as sure as can be on any number of images
        ax.set_ylim(low - (0.05 if 0 <= low < 1 else 1), high + 1)  # no count is negative
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


NAMED = 8
"""Up to so many steps are labelled by what goes in each, more by how many have gone."""


def removal_curve(evidence: Evidence, ax: Axes | None = None, *, curve: str = "blocks") -> Axes:
    """Draw the accuracy while parts are removed, with its interval, and a line and a band for the whole model.

    Args:
        evidence: of `verify_drops`.
        ax: where; a new figure if None.
        curve: "blocks", "attention" or "heads".

    Raises:
        InputError: there is no such curve.
    """
    if curve not in evidence.curves:
        known = ", ".join(evidence.curves) or "nothing"
        raise InputError(f"no {curve} were removed cumulatively, but {known}.")
    ax = new_axes(5.2, 3.4) if ax is None else ax
    steps = evidence.curves[curve]
    rows = [evidence.row(evidence.whole), *(evidence.row(tried) for tried in steps)]
    at, accuracy, low, high = (np.array([row[name] for row in rows]) for name in ("removed", "accuracy", "low", "high"))
    colour = COLOURS[1 if curve == "heads" else 0]
    ax.axhline(accuracy[0], color=GREY, linewidth=1.2, linestyle=":", label="whole model")
    ax.axhspan(low[0], high[0], color=GREY, alpha=0.15, linewidth=0)
    ax.plot(at, accuracy, "o-", color=colour, markersize=3, linewidth=1.5, label=f"without {curve}")
    band(ax, at, (low, high), colour)
    ax.set(xlabel=f"{curve} removed, the cheapest first", ylabel="accuracy")
    if len(steps) <= NAMED:
        gone = [f"{c.block}" if not c.head else f"{c.block}:{c.head}" for c in (t.changes[-1] for t in steps)]
        ax.set_xticks(at, labels=["none", *(f"– {name}" for name in gone)])
    else:
        number_from_one(ax.xaxis, len(steps), start=1)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    legend(ax)
    return ax
