"""Tables for a paper: single runs, and methods of several runs, with their curves over depth."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from attnprobe.core.accuracy import accuracy_interval
from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Measurement
from attnprobe.core.text import short
from attnprobe.plots import depth_curve
from attnprobe.plots.style import COLOURS
from attnprobe.reports.finding import Finding
from attnprobe.reports.kinds import OTHER_BARS
from attnprobe.reports.numbers import NONE, interval, is_counted, number
from attnprobe.reports.verdict import similar_words, verdict

HEADER = ("model", "#params", "top-1 [%]", "#similar blocks, softmax", "untrained", "#similar blocks, effective",
          "untrained")  # fmt: skip


def papers_table(runs: Sequence[Examined]) -> pd.DataFrame:
    """One row per run, numbers only; what is not known is missing.

    Zhou et al. 2021, arXiv:2103.11886, compare models by #params, top-1 and #similar blocks; what "similar" means here
    is ours (`similar_blocks`), so its settings are columns, and so is the count of the untrained network.
    "weights" is the softmax, "effective" effective attention.
    """
    return pd.DataFrame([_row(e) for e in runs])


def papers_cells(runs: Sequence[Examined]) -> list[list[str]]:
    """Cells of `papers_table` as text, under `HEADER`."""
    return [_cells(row) for row in papers_table(runs).to_dict("records")]


OF_RUNS = "In brackets 95 % intervals (accuracy: Wilson; counts: by the intervals of the blocks)."
OF_METHODS = "Mean ± standard deviation over the runs of a method."


def papers_caption(runs: Sequence[Examined], begin: str = OF_RUNS) -> str:
    """Caption: meaning of the numbers, of "untrained" and of "similar", for every run where that differs."""
    meanings = dict.fromkeys(similar_words(m) for e in runs for m in e.measurements.at_sites("similar_blocks"))
    images = sorted({m.n_images for e in runs for m in e.measurements.at_sites("similar_blocks")})
    meaning = "; ".join(meanings) or "similar blocks were not measured"
    on = f", on {'–'.join(map(str, dict.fromkeys((images[0], images[-1]))))} images" if images else ""
    words = f"{meaning[0].upper()}{meaning[1:]}{on}; {OTHER_BARS}"
    return f"{begin} Untrained: the same architecture with initial weights. {words}."


def _row(e: Examined) -> dict[str, Any]:
    accuracy, n = e.info.get("accuracy"), e.info.get("n_labelled") or e.info.get("n_images") or 0
    low, high = (None, None) if accuracy is None else accuracy_interval(round(accuracy * n), n)
    row = {"model": e.name, "parameters": e.info.get("parameters"), "images": e.info.get("n_images"),
           "accuracy": accuracy, "accuracy_low": low, "accuracy_high": high}  # fmt: skip
    row |= _counts("weights", e.measurements.get("similar_blocks", site="weights"))
    return row | _counts("effective", e.measurements.get("similar_blocks", site="effective"))


def _counts(site: str, m: Measurement | None) -> dict[str, Any]:
    s = m.summary if m is not None and is_counted(m) else {}
    fresh = m.baselines.get("untrained") if m is not None else None
    low, high = s.get("count_ci", (None, None))
    values = {"": s.get("count"), "_low": low, "_high": high, "_of": s.get("of"), "_tau": s.get("tau"),
              "_rho": s.get("rho"), "_compare": s.get("compare"),
              "_untrained": None if fresh is None else fresh.summary.get("count")}  # fmt: skip
    return {f"similar_{site}{name}": value for name, value in values.items()}


def _cells(row: dict[str, Any]) -> list[str]:
    cells = [row["model"], f"{int(row['parameters']):,}" if _known(row["parameters"]) else NONE]
    if _known(row["accuracy"]):
        low, high = (f"{100 * row[f'accuracy_{end}']:.1f}" for end in ("low", "high"))
        cells.append(f"{100 * row['accuracy']:.1f} ({low}–{high})")
    else:
        cells.append(NONE)
    for site in ("weights", "effective"):
        count, low, high, of, fresh = (
            int(value) if _known(value := row[f"similar_{site}{part}"]) else None
            for part in ("", "_low", "_high", "_of", "_untrained")
        )
        bounds = interval(low, high)
        cells.append(NONE if count is None else f"{count} of {of}" + (f" ({bounds})" if bounds else ""))
        cells.append(NONE if fresh is None else str(fresh))
    return cells


def _known(value: object) -> bool:
    return value is not None and value == value


METHODS_HEADER = ("method", "runs", *HEADER[1:])

PANEL = (4.4, 3.5)
"""Inches of one metric's curve."""

DRAWN = (("layer",), ("layer", "head"), ("threshold", "layer"))
"""Axes of measurements that a depth curve draws."""

Methods = Mapping[str, Sequence[Examined]]


def methods_cells(methods: Methods) -> list[list[str]]:
    """Mean and standard deviation over the runs of each method, under `METHODS_HEADER`."""
    every = []
    for name, runs in methods.items():
        rows = papers_table(runs)
        parameters = sorted({int(n) for n in _column(rows, "parameters") if np.isfinite(n)})
        cells = [name, str(len(rows)), "/".join(f"{n:,}" for n in parameters) or NONE]
        cells.append(_spread(100 * _column(rows, "accuracy")))
        for site in ("weights", "effective"):
            cells += [_spread(_column(rows, f"similar_{site}{which}")) for which in ("", "_untrained")]
        every.append(cells)
    return every


def kinds_cells(methods: Methods) -> list[list[str]]:
    """A row per kind of collapse that could be judged in any run: its name, then the answer of each method."""
    found = {name: zip(*(verdict(e).findings for e in runs), strict=True) for name, runs in methods.items()}
    rows = []
    for kinds in zip(*found.values(), strict=True):
        if any(f.found != "cannot say" for its in kinds for f in its):
            rows.append([kinds[0][0].kind, *map(_answers, kinds)])
    return rows


def _answers(findings: Sequence[Finding]) -> str:
    """`24 of 24, 0.999` of one run, with the number that decides; `24 of 24 in 2 runs, no in 1` of several."""
    if len(findings) == 1:
        f = findings[0]
        return f.brief if f.number is None else f"{f.brief}, {number(f.number)}"
    (first, n), *others = Counter(f.brief for f in findings).most_common()
    return ", ".join([f"{first} in {n} run{'s' if n > 1 else ''}", *(f"{words} in {m}" for words, m in others)])


def _column(rows: pd.DataFrame, name: str) -> np.ndarray:
    """[run], float; NaN where it is not known."""
    return np.array(rows[name].tolist(), dtype=float)


def _spread(values: np.ndarray) -> str:
    """`5.2 ± 1.3`; a dash where a value is not known."""
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
    """The metric of every run, on effective attention where that was measured; empty where a run lacks it."""
    found = {
        name: [m for e in runs if (m := e.measurements.prefer(metric, "effective", "weights")) is not None]
        for name, runs in methods.items()
    }
    return found if all(len(found[name]) == len(runs) for name, runs in methods.items()) else {}
