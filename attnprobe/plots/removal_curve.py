"""What accuracy is left while blocks, or heads, are taken away one after the other?"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import PercentFormatter

from attnprobe.core.errors import InputError
from attnprobe.core.evidence import Evidence
from attnprobe.plots.style import COLOURS, legend, new_axes, number_from_one

NAMED = 8
"""Up to so many steps are labelled by what goes in each, more by how many have gone."""


def removal_curve(evidence: Evidence, ax: Axes | None = None, *, curve: str = "blocks") -> Axes:
    """Draw the accuracy, with its interval, after each step, and a line and a band for the whole model.

    Args:
        evidence: what was tried.
        ax: where; a new figure if None.
        curve: "blocks" or "heads".

    Raises:
        InputError: there is no such curve.
    """
    if curve not in evidence.curves:
        known = ", ".join(evidence.curves) or "nothing"
        raise InputError(f"no {curve} were taken away one after the other, but {known}.")
    ax = new_axes(5.2, 3.4) if ax is None else ax
    steps = evidence.curves[curve]
    rows = [evidence.row(evidence.whole), *(evidence.row(tried) for tried in steps)]
    at, accuracy, low, high = (np.array([row[name] for row in rows]) for name in ("removed", "accuracy", "low", "high"))
    colour = COLOURS[0 if curve == "blocks" else 1]
    ax.axhline(accuracy[0], color="#808080", linewidth=1.2, linestyle=":", label="whole model")
    ax.axhspan(low[0], high[0], color="#808080", alpha=0.15, linewidth=0)
    ax.plot(at, accuracy, "o-", color=colour, markersize=3, linewidth=1.5, label=f"without {curve}")
    ax.fill_between(at, low, high, color=colour, alpha=0.2, linewidth=0)
    ax.set(xlabel=f"{curve} taken away, the cheapest first", ylabel="accuracy")
    if len(steps) <= NAMED:
        gone = [f"{c.block}" if curve == "blocks" else f"{c.block}:{c.head}" for c in (t.changes[-1] for t in steps)]
        ax.set_xticks(at, labels=["none", *(f"– {name}" for name in gone)])
    else:
        number_from_one(ax.xaxis, len(steps))
        ax.set_xticks([place + 1 for place in ax.get_xticks()], labels=[str(int(p + 1)) for p in ax.get_xticks()])
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    legend(ax)
    return ax
