"""How do the heads of a block spread? A dot per head, block by block."""

import numpy as np
from matplotlib.axes import Axes

from attnprobe.core.measurement import Measurement
from attnprobe.plots.style import COLOURS, legend, new_axes, number_from_one, quantity, require_axes

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
        for name, style in (("untrained", ":"), ("uniform", "-.")):
            if name in m.baselines:
                mean = m.baselines[name].mean.mean(1)
                ax.plot(at, mean, label=name, color="#808080", linestyle=style, linewidth=1.2)
    number_from_one(ax.xaxis, blocks, kept=m.coords.get("layer"))
    ax.set_xlim(-0.6, blocks - 0.4)
    ax.set(xlabel="block", ylabel=quantity(m))
    legend(ax)
    return ax
