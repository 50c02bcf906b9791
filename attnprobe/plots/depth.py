"""Values over depth: a line per run with its interval, or a dot per head."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from attnprobe.core.errors import ShapeError
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
    quantity,
    require_axes,
)
from attnprobe.stats.blocks import chosen_threshold, similar_share
from attnprobe.stats.interval import mean_of, within
from attnprobe.stats.over_runs import Runs, estimate, scatter_of_mean

Series = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Mean, lower and upper bound, each [layer]."""


def depth_curve(
    m: Measurement | Sequence[Measurement], ax: Axes | None = None, *, label: str = "", baselines: bool = True, **line
) -> Axes:
    """Draw one value per block, a band for its 95 % interval, and dotted baselines. Call again to add a run.

    (layer,) is drawn as it is; of (layer, head) the mean over heads; of similar blocks, (threshold, layer), the share
    of similar vectors at the threshold `tau` of its settings.

    Args:
        m: what to draw; of several runs of one method, each as a thin line, their mean, and a band for its interval
            over runs and images.
        ax: where; a new figure if None.
        label: name in the legend; the metric if empty.
        baselines: draw "untrained" and "uniform" too, if they were measured.
        line: passed to `Axes.plot`, such as color or linestyle.

    Raises:
        ShapeError: other axes, or runs of one method that differ in depth.
    """
    runs = [m] if isinstance(m, Measurement) else list(m)
    m = runs[0]
    for run in runs:
        require_axes(run, "depth_curve", ("layer",), ("layer", "head"), ("threshold", "layer"))
    ax = new_axes(5.2, 3.4) if ax is None else ax
    mean, low, high = by_depth(m) if len(runs) == 1 else by_depth_of_runs(runs)
    blocks = np.array(m.block_numbers) - 1
    options = {"marker": "o", "markersize": 3, "linewidth": 1.5, **line}
    (drawn,) = ax.plot(blocks, mean, label=line_label(label or m.metric.replace("_", " ")), **options)
    for run in runs if len(runs) > 1 else ():
        ax.plot(blocks, by_depth(run)[0], label="_run", color=drawn.get_color(), linewidth=0.5, alpha=0.7)
    band(ax, blocks, (low, high), drawn.get_color())
    if baselines:
        baseline_lines(ax, m, lambda base: (blocks, by_depth(base)[0]), drawn.get_color())
    deepest = max(int(np.max(drawn.get_xdata())) for drawn in ax.get_lines() if np.size(drawn.get_xdata())) + 1
    number_from_one(ax.xaxis, deepest)
    ax.set_xlim(-0.5, deepest - 0.5)
    ax.set(xlabel="block", ylabel=_name(m))
    ax.ticklabel_format(axis="y", useOffset=False)  # matplotlib writes the offset over the legend
    if m.axes == ("threshold", "layer"):
        ax.axhline(m.settings["rho"], color=GREY, linewidth=0.8)
        ax.set_ylim(-0.03, 1.03)
    legend(ax)
    return ax


def by_depth(m: Measurement) -> Series:
    """Mean, low and high per block, as `depth_curve` draws them."""
    low, high = m.ci
    if m.axes == ("layer",):
        return m.mean, low, high
    if m.axes == ("layer", "head"):
        return mean_of(m, np.ones(m.mean.shape[1], bool))
    ratio, low, high = similar_share(m, np.stack([m.mean, low, high]))
    return ratio, low, high


def by_depth_of_runs(runs: Sequence[Measurement]) -> Series:
    """Mean over several runs of one method, and its interval over runs and images.

    Over runs alone where images were not kept, are others in some runs, or the number is no mean over them.
    """
    means = [by_depth(m)[0] for m in runs]
    if len({mean.shape for mean in means}) > 1:
        raise ShapeError(
            f"runs of one method have one depth, not {', '.join(str(len(mean)) for mean in means)} blocks."
        )
    values = [_per_image(m) for m in runs]
    together = len({m.image_ids for m in runs}) == 1 and len(runs[0].image_ids) > 1
    if together and all(value is not None for value in values):
        _, scatter = scatter_of_mean(np.stack([value for value in values if value is not None]))
    else:
        scatter = np.zeros((len(runs), 1, *means[0].shape))
    found = estimate(Runs(np.stack(means), scatter, max(2, len(runs[0].image_ids))))
    low, high = within(found.ci, runs[0].value_range)
    return found.mean, low, high


def _per_image(m: Measurement) -> np.ndarray | None:
    """[image, layer]: the values whose mean `by_depth` returns; None where they were not kept."""
    if m.per_image is None or m.from_mean is not None:
        return None
    values = m.per_image.astype(np.float64)
    if m.axes == ("layer", "head"):
        return values.mean(-1)
    return values if m.axes == ("layer",) else values[:, chosen_threshold(m)]


def _name(m: Measurement) -> str:
    if m.axes == ("threshold", "layer"):
        return f"share of vectors with cosine > {m.settings['tau']}"
    return quantity(m) + ("\nmean over heads" if m.axes == ("layer", "head") else "")


SPREAD = 0.3
"""Heads of a block are drawn this far to its left and right, in order of their value, so that none hides another."""


def head_scatter(m: Measurement, ax: Axes | None = None, *, baselines: bool = True) -> Axes:
    """Draw a measurement over (layer, head) as dots over depth, with the block's mean as a line.

    For attention distance this is the figure of the ViT paper (Dosovitskiy et al. 2020, arXiv:2010.11929): local and
    global heads by depth.

    Args:
        m: what to draw.
        ax: where; a new figure if None.
        baselines: draw what uniform attention has, and the mean of the untrained network, if they were measured.

    Raises:
        ShapeError: other axes.
    """
    require_axes(m, "head_scatter", ("layer", "head"))
    ax = new_axes(5.2, 3.4) if ax is None else ax
    blocks, heads = m.mean.shape
    at = np.arange(blocks)
    offsets = np.linspace(-SPREAD, SPREAD, heads) if heads > 1 else np.zeros(1)
    ax.plot(
        at[:, None] + offsets, np.sort(m.mean, axis=1), "o", markersize=3, color=COLOURS[0], alpha=0.7, label="head"
    )
    ax.plot(at, m.mean.mean(1), color=COLOURS[1], linewidth=1.5, label="mean of heads")
    if baselines:
        baseline_lines(ax, m, lambda base: (at, base.mean.mean(1)), GREY)
    number_from_one(ax.xaxis, blocks, kept=m.coords.get("layer"))
    ax.set_xlim(-0.6, blocks - 0.4)
    ax.set(xlabel="block", ylabel=quantity(m))
    ax.ticklabel_format(axis="y", useOffset=False)
    legend(ax)
    return ax
