"""Several runs -> one table for a paper, and where each differs from the first on the images that both saw."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from attnprobe import pipeline
from attnprobe.core import fs
from attnprobe.core.errors import InputError, check_choice
from attnprobe.core.examined import Examined
from attnprobe.core.progress import progress
from attnprobe.core.visible import markdown
from attnprobe.differences import Compared, compared, depth_of, order_of_heads, pairs_of, shared_images, why_not
from attnprobe.metrics.holm import LEVEL
from attnprobe.metrics.paired import Difference
from attnprobe.reports.latex import booktabs
from attnprobe.reports.numbers import NONE, number, with_interval
from attnprobe.reports.papers_table import HEADER, papers_caption, papers_cells, papers_table
from attnprobe.reports.tables import summary_table

TABLES = ("papers", "summary")


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Runs side by side: what was examined, every metric's difference from the first run, and what to know of it."""

    runs: tuple[Examined, ...]
    differences: tuple[Compared, ...]
    notes: tuple[str, ...]


def compare(
    paths: Sequence[Path | str],
    *,
    out: Path,
    table: str = "papers",
    metrics: Sequence[str] | None = None,
    match_heads: bool = False,
    resamples: int = 10_000,
) -> tuple[Comparison, list[Path]]:
    """Compare maps files or runs with the first of them, and write the table and the differences into `out`.

    Args:
        out: folder for comparison.md, .csv, .tex (the table) and differences.csv (every cell).
        table: "papers": parameters, accuracy, similar blocks; "summary": the rows of a report.
        metrics: as for `examine`.
        match_heads: before heads are compared, pair those of each block whose maps of the shared images are most alike
            (cosine, Hungarian method); runs of equal depth and heads only.
        resamples: of the images, for intervals and tests.

    Raises:
        InputError: nothing to compare, or maps that cannot be paired.
        WorkError: the disk is full or fails.
    """
    check_choice("table", table, TABLES)
    if not paths:
        raise InputError("nothing to compare; give two maps files or runs, or more.")
    runs = tuple(pipeline.examine_all(paths, metrics=metrics, pictures=0))
    found, notes = [], []
    first = runs[0]
    for other in runs[1:]:
        shared = () if why_not(first, other) else shared_images(first, other)
        notes.append(_about(first, other, shared))
        order = order_of_heads(first, other, shared) if match_heads else None
        pairs = list(pairs_of(first, other))
        with progress(f"compare {other.name}", len(pairs)) as advance:
            for one, two, site in pairs:
                if reason := why_not(first, other, one.metric):
                    found.append(Compared(other.name, one.metric, site, one.stage, why=reason))
                else:
                    found.append(compared(other.name, one, two, site, shared, order, resamples))
                advance(1)
    comparison = Comparison(runs, tuple(found), tuple(notes))
    with fs.as_work_error(f"writing the comparison into {out}"):
        return comparison, _write(comparison, table, Path(out))


def _about(first: Examined, other: Examined, shared: tuple[str, ...]) -> str:
    text = f"{other.name} minus {first.name}: " + (
        why_not(first, other) or f"{len(shared)} images that both were measured on"
    )
    depths = depth_of(first), depth_of(other)
    if depths[0] != depths[1]:
        text += (
            f"; {depths[1]} blocks against {depths[0]}, so compared at equal relative depth (0 the first block, 1 the "
            f"last; {min(depths)} depths, linear between blocks): neighbours are closer together in the deeper one"
        )
    tokens = first.grid.n_tokens, other.grid.n_tokens
    if tokens[0] != tokens[1]:
        text += (
            f"; {tokens[1]} tokens against {tokens[0]}: only cosines and what is relative to the number of tokens, "
            "such as row_entropy_relative, can be compared"
        )
    for e in (first, other):
        if named := next((m.not_finite for m in e.measurements.values() if m.not_finite), ()):
            text += f"; of {e.name} not finite and left out: {'; '.join(named)}"
    return f"{text}."


# --- files ---------------------------------------------------------------------------------------------------------


def _write(comparison: Comparison, table: str, out: Path) -> list[Path]:
    header, rows, caption, data = _table(comparison.runs, table)
    texts = {
        "comparison.md": _markdown(comparison, header, rows, caption),
        "comparison.csv": data.to_csv(index=False, lineterminator="\n"),
        "comparison.tex": booktabs(header, rows, caption=caption, label="tab:attnprobe"),
    }
    if len(comparison.runs) > 1:
        texts["differences.csv"] = differences_table(comparison).to_csv(index=False, lineterminator="\n")
    fs.make_folder(out)
    for name, text in texts.items():
        fs.write_file(out / name, text.encode("utf-8", "backslashreplace"), overwrite=True)
    return [out / name for name in texts]


def _table(runs: Sequence[Examined], table: str) -> tuple[tuple[str, ...], list[list[str]], str, pd.DataFrame]:
    """Header and cells for reading, a caption, and the same for programs."""
    if table == "papers":
        return HEADER, papers_cells(runs), papers_caption(runs), papers_table(runs)
    summary = summary_table(runs)
    header = ("mean over images (95 % CI)", *summary.columns)
    rows = [[label, *cells] for label, *cells in summary.itertuples(name=None)]
    return header, rows, papers_caption(runs), pd.DataFrame(rows, columns=list(header))


def differences_table(comparison: Comparison) -> pd.DataFrame:
    """One row per cell of every metric that could be compared: run minus the first run, its interval and p-values.

    Blocks and heads count from 1, of the first run; `depth` is relative, from 0 to 1, where depths differ.
    """
    parts = [_cells_of(row, comparison.runs[0].name) for row in comparison.differences if row.cells is not None]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def _cells_of(row: Compared, first: str) -> pd.DataFrame:
    assert row.cells is not None
    d, shape = row.cells, row.cells.mean.shape
    about = {"run": row.run, "minus": first, "stage": row.stage, "metric": row.metric, "site": row.site, "unit": d.unit}
    columns: dict[str, object] = {name: [value] * d.mean.size for name, value in about.items()}
    for i, (axis, position) in enumerate(zip(d.axes, np.indices(shape).reshape(len(shape), -1), strict=True)):
        name = ("depth" if axis == "layer" and row.depth == "relative" else axis) + ("_2" if axis in d.axes[:i] else "")
        labels = (row.coords or {}).get(axis)
        if name.startswith("depth"):
            columns[name] = position / max(1, shape[i] - 1)
        else:
            columns[name] = position + 1 if labels is None else [labels[p] for p in position]
    values = {"difference": d.mean, "low": d.ci[0], "high": d.ci[1], "p": d.p, "p_holm": d.p_holm}
    columns |= {name: np.ravel(value) for name, value in values.items()}
    return pd.DataFrame({**columns, "n_images": d.n_images})


def _markdown(comparison: Comparison, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    lines = ["# Comparison", "", *_grid(header, rows), "", markdown(caption), ""]
    for note, other in zip(comparison.notes, comparison.runs[1:], strict=True):
        lines += [f"## {markdown(other.name)} against {markdown(comparison.runs[0].name)}", "", markdown(note), ""]
        lines += _grid(
            ("metric", "mean difference (95 % CI)", "cells that differ", "largest"),
            [difference_cells(row) for row in comparison.differences if row.run == other.name],
        )
        lines += [
            "",
            "Of similar blocks, the mean difference is that of their number. A cell differs where the permutation test "
            f"of image pairs, Holm-corrected over the cells of its metric, has p < {LEVEL}.",
            "",
        ]
    return "\n".join(lines)


def difference_cells(row: Compared) -> list[str]:
    """A line for reading: metric, difference, how many cells differ, the largest of these and where it is."""
    label = f"{row.metric} ({row.site})" + (f", {row.stage}" if row.stage != "trunk" else "")
    if row.cells is None:
        return [label, f"cannot say: {row.why}", NONE, NONE]
    d, o = row.cells, row.overall
    if o is not None and not np.isfinite(o.mean):
        unknown = np.argwhere(~np.isfinite(d.mean))
        at = f" at {_where(row, d, tuple(unknown[0]))}" if len(unknown) else ""
        return [label, f"cannot say: no finite value{at}", NONE, NONE]
    whole = NONE if o is None else with_interval(float(o.mean), float(o.ci[0]), float(o.ci[1]))
    if d.smallest > LEVEL:
        return [label, whole, f"cannot say: {d.n_images} images are too few to test {d.n_tests} cells", NONE]
    found = np.nan_to_num(d.p_holm, nan=1.0) < LEVEL
    half = "" if d.n_tests == 0 else f" of {d.n_tests}"
    count = int(found.sum()) // (2 if d.n_tests < np.isfinite(d.mean).sum() else 1)
    if not found.any():
        return [label, whole, f"0{half}", NONE]
    place = np.unravel_index(np.argmax(np.where(found, np.abs(d.mean), -1)), d.mean.shape)
    return [label, whole, f"{count}{half}", f"{number(float(d.mean[place]))} at {_where(row, d, place)}"]


def _where(row: Compared, d: Difference, place: tuple[np.intp, ...]) -> str:
    words = []
    for axis, position in zip(d.axes, place, strict=True):
        labels = (row.coords or {}).get(axis)
        if axis == "layer" and row.depth == "relative":
            words.append(f"depth {position / max(1, d.mean.shape[d.axes.index('layer')] - 1):.2f}")
        else:
            name = "block" if axis == "layer" else axis
            words.append(f"{name} {position + 1 if labels is None else labels[position]}")
    return ", ".join(words)


def _grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table; the first column is left-aligned."""
    lines = [f"| {' | '.join(map(markdown, header))} |", "|---" + "|--:" * (len(header) - 1) + "|"]
    return [*lines, *(f"| {' | '.join(map(markdown, row))} |" for row in rows)]
