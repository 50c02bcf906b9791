"""Methods of several runs each, in a table and block by block."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Measurement
from attnprobe.core.text import short
from attnprobe.plots import depth_curve
from attnprobe.plots.style import COLOURS
from attnprobe.reports.numbers import NONE
from attnprobe.reports.papers_table import papers_meaning, papers_table

METHODS_HEADER = ("method", "runs", "#params", "top-1 [%]", "#similar blocks, softmax", "untrained",
                  "#similar blocks, effective", "untrained")  # fmt: skip

PANEL = (4.4, 3.5)
"""Inches of one metric's curve."""

DRAWN = (("layer",), ("layer", "head"), ("threshold", "layer"))
"""Axes that a depth curve draws."""

Methods = Mapping[str, Sequence[Examined]]


def methods_cells(methods: Methods) -> list[list[str]]:
    """Mean and standard deviation over the runs of each method, under `METHODS_HEADER`."""
    return [_cells(name, papers_table(runs)) for name, runs in methods.items()]


def methods_caption(runs: Sequence[Examined]) -> str:
    """What the numbers mean."""
    return f"Mean ± standard deviation over the runs of a method. {papers_meaning(runs)}"


def _cells(name: str, rows: pd.DataFrame) -> list[str]:
    parameters = sorted({int(n) for n in _column(rows, "parameters") if np.isfinite(n)})
    cells = [name, str(len(rows)), "/".join(f"{n:,}" for n in parameters) or NONE]
    cells.append(_spread(100 * _column(rows, "accuracy")))
    for site in ("weights", "effective"):
        cells += [_spread(_column(rows, f"similar_{site}{which}")) for which in ("", "_untrained")]
    return cells


def _column(rows: pd.DataFrame, name: str) -> np.ndarray:
    """[run], float; NaN where it is not known."""
    return np.array(rows[name].tolist(), dtype=float)


def _spread(values: np.ndarray) -> str:
    """`5.2 ± 1.3`; of values that are all known."""
    return f"{values.mean():.1f} ± {values.std(ddof=1):.1f}" if np.isfinite(values).all() else NONE


def depth_figure(methods: Methods) -> bytes:
    """A PNG of every metric that has a value per block: runs as thin lines, methods with their 95 % band."""
    first = next(iter(methods.values()))[0]
    names = dict.fromkeys(m.metric for m in first.measurements.values() if m.axes in DRAWN)
    panels = {name: found for name in names if (found := _everywhere(methods, name))}
    across = min(2, max(1, len(panels)))
    down = max(1, -(-len(panels) // across))
    sheet = Figure(figsize=(across * PANEL[0], down * PANEL[1]), layout="constrained")
    axes = sheet.subplots(down, across, squeeze=False).ravel()
    for ax, found in zip(axes, panels.values(), strict=False):
        ax.set_prop_cycle(color=COLOURS)
        for name, runs in found.items():
            depth_curve(runs, ax, label=short(name))
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    file = io.BytesIO()
    sheet.savefig(file, format="png", dpi=150)
    return file.getvalue()


def _everywhere(methods: Methods, metric: str) -> dict[str, list[Measurement]]:
    """The metric of every run, at what multiplies V where that was measured; empty where a run lacks it."""
    found = {
        name: [m for e in runs if (m := e.measurements.prefer(metric, "effective", "weights")) is not None]
        for name, runs in methods.items()
    }
    return found if all(len(found[name]) == len(runs) for name, runs in methods.items()) else {}
