"""Several runs, or methods of several runs -> one table for a paper, and where each differs from the first."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attnprobe.core.errors import InputError, check_choice, option
from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Measurement
from attnprobe.core.sites import SITES
from attnprobe.core.text import markdown, one_run_each
from attnprobe.io import fs
from attnprobe.io.progress import progress
from attnprobe.io.remote import place
from attnprobe.reports.caveats import about_stages
from attnprobe.reports.markup import booktabs, markdown_table
from attnprobe.reports.numbers import NONE, number, with_interval
from attnprobe.reports.papers import (
    HEADER,
    METHODS_HEADER,
    OF_METHODS,
    depth_figure,
    kinds_cells,
    methods_cells,
    papers_caption,
    papers_cells,
    papers_table,
)
from attnprobe.reports.tables import SUMMARY_HEADER, summary_table, to_csv
from attnprobe.stats.paired import LEVEL, Difference
from attnprobe.workflows.differences import (
    Compared,
    common_measurements,
    compared,
    depth_of,
    order_of_heads,
    rounding,
    same_parts,
    shared_images,
    stages_differ,
    whole_network,
    why_not,
)
from attnprobe.workflows.groups import Named, Side, check_paths, check_runs, named_groups
from attnprobe.workflows.measure import examine_all

TABLES = ("papers", "summary")


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """Runs or methods side by side: every metric's difference from the first, and what to know of it.

    Attributes:
        sides: what is compared; either all are methods of several runs, or all are single runs.
        differences: of each side but the first, of every metric.
        notes: a sentence for each side but the first.
        unlike: a sentence for each side that saw other images than the first.
    """

    sides: tuple[Side, ...]
    differences: tuple[Compared, ...]
    notes: tuple[str, ...]
    unlike: tuple[str, ...] = ()

    @property
    def runs(self) -> tuple[Examined, ...]:
        """Runs of all sides."""
        return tuple(run for side in self.sides for run in side.runs)

    @property
    def scope(self) -> str:
        """Sentence on the scope of a comparison of single runs; else empty."""
        return one_run_each(len(self.sides)) if len(self.sides) > 1 and not self.sides[0].is_method else ""


def compare(
    paths: Sequence[Path | str] | Named,
    *,
    out: Path,
    table: str = "papers",
    metrics: Sequence[str] | None = None,
    match_heads: bool = False,
    resamples: int = 10_000,
    group: str | None = None,
) -> tuple[Comparison, list[Path]]:
    """Compare maps files or runs, or methods of several runs, with the first, and write table and differences.

    Args:
        paths: maps files, runs or folders of `capture --stats-only`; or {name: runs of one method}, or the same as
            texts, `"vit=runs/vit_s*"`.
        out: folder for comparison.md, .csv, .tex (the table) and differences.csv (every cell); of methods also
            depth.png, what each measures block by block.
        table: "papers": parameters, accuracy, similar blocks; "summary": the rows of a report.
        metrics: as for `examine`.
        match_heads: before heads are compared, pair those of each block whose maps of the shared images are most alike
            (cosine, Hungarian method); runs of equal depth and heads only.
        resamples: of the images, for intervals and tests of single runs; of methods these are Student's t over runs
            and images, see `stats.over_runs`.
        group: which images count once together, as for `measure`.

    Raises:
        InputError: nothing to compare, maps that cannot be paired, or groups of runs that are none: see `groups`.
        WorkError: the disk is full or fails.
    """
    check_choice("table", table, TABLES)
    fs.check_folder(place(out, output=True))
    if not paths:
        raise InputError("nothing to compare; give two maps files or runs, or more.")
    sides = _sides(paths, metrics, group)
    if match_heads and sides[0].is_method:
        raise InputError(f"heads of several runs have no order in common; leave {option('match-heads')} out.")
    found, notes, unlike = [], [], []
    first, *others = sides
    for other in others:
        refusal = next((why for run in (*first.runs[1:], *other.runs) if (why := why_not(first.runs[0], run))), "")
        shared, changed = ((), 0) if refusal else shared_images((*first.runs, *other.runs))
        notes.append(_about(first, other, shared, refusal, changed))
        unlike += _unlike(first, other, len(shared))
        order = order_of_heads(first.runs[0], other.runs[0], shared) if match_heads else None
        rounded = rounding((*first.runs, *other.runs))
        pairs = list(common_measurements(first.runs[0], other.runs[0]))
        with progress(f"compare {other.name}", len(pairs)) as advance:
            for one, two, site in pairs:
                advance(1)
                pairs_of = _everywhere(first, one), _everywhere(other, two)
                missing = sum(map(len, pairs_of)) < len(first.runs) + len(other.runs)
                reason = refusal or why_not(first.runs[0], other.runs[0], one.metric)
                try:
                    ones, twos = _comparable(*pairs_of)
                except InputError as error:
                    reason = reason or str(error)
                    ones = twos = []
                if reason := reason or ("it was not measured in all runs" if missing else ""):
                    found.append(Compared(other.name, one.metric, site, one.stage, why=reason))
                else:
                    found.append(compared(other.name, ones, twos, site, shared, order, resamples, rounded))
    comparison = Comparison(sides, tuple(found), tuple(notes), tuple(unlike))
    with fs.as_work_error(f"writing the comparison into {out}"):
        return comparison, _write(comparison, table, place(out, output=True))


def _sides(paths: Sequence[Path | str] | Named, metrics: Sequence[str] | None, group: str | None) -> tuple[Side, ...]:
    """The runs to compare, measured."""
    groups = paths if isinstance(paths, Mapping) else named_groups(paths)
    how: dict[str, Any] = {"metrics": metrics, "pictures": 0, "group": group}
    if groups is None:
        return tuple(Side(e.name, (e,)) for e in examine_all(list(paths), **how))
    check_paths(groups)
    sides = tuple(Side(name, tuple(examine_all(its, **how))) for name, its in groups.items())
    check_runs(sides)
    return sides


Measured = list[tuple[Examined, Measurement]]


def _everywhere(side: Side, m: Measurement) -> Measured:
    """The measurement of one run in the runs of its method that have it."""
    found = ((run, run.measurements.get(m.metric, site=m.site, stage=m.stage)) for run in side.runs)
    return [(run, its) for run, its in found if its is not None]


def _comparable(*sides: Measured) -> list[list[Measurement]]:
    """The measurements of each side; where blocks have unequal numbers of heads, those of all blocks.

    Raises:
        InputError: there is no such number of all blocks.
    """
    whole = stages_differ([pair for side in sides for pair in side])
    return [[whole_network(e, m) if whole else m for e, m in side] for side in sides]


def _unlike(one: Side, two: Side, n_shared: int) -> Iterator[str]:
    """Sentence on two sides that were not captured on the same images."""
    sizes = {max((m.n_images for m in e.measurements.values()), default=0) for e in (*one.runs, *two.runs)}
    if not n_shared:
        yield (
            f"{two} and {one} were captured on different images: numbers side by side differ by their images, too, and "
            "no difference of the models can be tested."
        )
    elif n_shared < max(sizes):
        yield (
            f"{two} and {one} share {n_shared} of up to {max(sizes)} images: numbers side by side are each on its own "
            "images, differences on the shared ones."
        )


def _about(one: Side, two: Side, shared: tuple[str, ...], refusal: str, changed: int) -> str:
    seen = "all runs were" if two.is_method else "both were"
    text = f"{two} minus {one}: " + (refusal or f"{len(shared)} images that {seen} measured on")
    if changed:
        text += f"; {changed} more of the same names have other pixels, so they are other images and not paired"
    said: dict[str, list[str]] = {}
    for e in (*one.runs, *two.runs):
        said.setdefault(about_stages(e), []).append(e.name)
    for stages, names in said.items():
        text += f"; of {' and '.join(dict.fromkeys(names))} {stages}" if stages else ""
    folded = [m.n_images for e in (*one.runs, *two.runs) for m in e.measurements.values() if m.replicates is not None]
    if folded and not refusal:
        text += f", those of up to {max(folded)} whose values were kept one by one"
    for note in dict.fromkeys(note for e in (*one.runs, *two.runs) for note in e.notes):
        text += f"; {note.rstrip('.')}"
    first, other = one.runs[0], two.runs[0]
    depths = depth_of(first), depth_of(other)
    if depths[0] != depths[1] and same_parts(first, other):
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
    for e in (*one.runs, *two.runs):
        if named := next((m.not_finite for m in e.measurements.values() if m.not_finite), ()):
            text += f"; of {e.name} not finite and left out: {'; '.join(named)}"
    return f"{text}."


# --- files ---------------------------------------------------------------------------------------------------------


def _write(comparison: Comparison, table: str, out: Path) -> list[Path]:
    header, rows, caption, data = _table(comparison, table)
    texts = {
        "comparison.md": _markdown(comparison, header, rows, caption),
        "comparison.csv": to_csv(data),
        "comparison.tex": booktabs(header, rows, caption=caption, label="tab:attnprobe"),
    }
    if len(comparison.sides) > 1:
        texts["differences.csv"] = to_csv(differences_table(comparison))
    files = {name: text.encode("utf-8", "backslashreplace") for name, text in texts.items()}
    if any(side.is_method for side in comparison.sides):
        files["depth.png"] = depth_figure({str(side): side.runs for side in comparison.sides})
    fs.make_folder(out)
    for name, data in files.items():
        fs.write_file(out / name, data, overwrite=True)
    return [out / name for name in files]


def _table(comparison: Comparison, table: str) -> tuple[tuple[str, ...], list[list[str]], str, pd.DataFrame]:
    """Header and cells for reading, a caption, and the same for programs: there every run has a row of its own."""
    runs, sides = comparison.runs, comparison.sides
    scope = f" {comparison.scope}" if comparison.scope else ""
    if table == "papers":
        data = papers_table(runs)
        data.insert(0, "method", [side.name if side.is_method else "" for side in sides for _ in side.runs])
        data.insert(1, "runs", [len(side.runs) for side in sides for _ in side.runs])
        if not sides[0].is_method:
            return HEADER, papers_cells(runs), papers_caption(runs) + scope, data
        cells = methods_cells({side.name: side.runs for side in sides})
        return METHODS_HEADER, cells, papers_caption(runs, OF_METHODS), data
    summary = summary_table(runs)
    header = (SUMMARY_HEADER, *summary.columns)
    rows = [list(row) for row in summary.itertuples(name=None)]
    return header, rows, papers_caption(runs) + scope, pd.DataFrame(rows, columns=list(header))


def differences_table(comparison: Comparison) -> pd.DataFrame:
    """One row per cell of every metric that could be compared: run minus the first run, its interval and p-values.

    Blocks and heads count from 1, of the first run; `depth` is relative, from 0 to 1, where depths differ. `runs` and
    `minus_runs` say of how many runs each is; `effect` is the difference in standard deviations of runs of a method.
    """
    parts = [_cells_of(row, comparison.sides[0].name) for row in comparison.differences if row.cells is not None]
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
    columns["effect"] = np.full(d.mean.size, np.nan) if d.effect is None else np.ravel(d.effect)
    return pd.DataFrame({**columns, "n_images": d.n_images, "runs": d.n_runs[1], "minus_runs": d.n_runs[0]})


def _markdown(comparison: Comparison, header: Sequence[str], rows: Sequence[Sequence[str]], caption: str) -> str:
    first, *others = comparison.sides
    unlike = [line for sentence in comparison.unlike for line in (f"**{markdown(sentence)}**", "")]
    lines = ["# Comparison", "", *unlike, *markdown_table(header, rows), "", markdown(caption), ""]
    if kinds := kinds_cells({str(side): side.runs for side in comparison.sides}):
        head = ("kind of collapse: blocks, deciding number", *map(str, comparison.sides))
        lines += [*markdown_table(head, kinds), ""]
    if first.is_method:
        lines += ["![block by block: runs as thin lines, methods with their 95 % band](depth.png)", ""]
    for note, other in zip(comparison.notes, others, strict=True):
        lines += [f"## {markdown(str(other))} against {markdown(str(first))}", "", markdown(note), ""]
        its = [row for row in comparison.differences if row.run == other.name]
        effect = ("effect [run SD]",) if first.is_method else ()
        if cells := [difference_cells(row, bool(effect)) for row in its if row.cells is not None]:
            head = ("metric", "mean difference (95 % CI)", *effect, "cells that differ", "largest")
            lines += [*markdown_table(head, cells), "", _how_tested(first), ""]
        for why in dict.fromkeys(row.why for row in its if row.cells is None):
            names = dict.fromkeys(row.metric for row in its if row.cells is None and row.why == why)
            lines += [markdown(f"Cannot say of {', '.join(names)}: {why.rstrip('.')}."), ""]
    return "\n".join(lines)


BEYOND = "and is more than stored maps are rounded by"
"""Condition of a cell that differs, in words; see `differences.rounding`."""


def _how_tested(first: Side) -> str:
    count = "The mean difference of similar blocks is of their number, of pairs of blocks that of neighbouring ones. "
    if first.is_method:
        return count + (
            "Intervals and tests are Student's t over runs and images, of heads their mean. A cell differs where the "
            f"test, Holm-corrected over the cells of its metric, has p < {LEVEL}, {BEYOND}. The effect is the mean "
            "difference in standard deviations of runs of one method."
        )
    return count + (
        "A cell differs where the permutation test of image pairs, Holm-corrected over the cells of its metric, has "
        f"p < {LEVEL}, {BEYOND}."
    )


def difference_cells(row: Compared, effect: bool = False) -> list[str]:
    """A line for reading: metric, difference, its effect if asked for, how many cells differ, the largest of these."""
    cells = _difference_cells(row)
    if effect:
        found = None if row.overall is None else row.overall.effect
        cells.insert(2, NONE if found is None else number(float(found)))
    return cells


def _difference_cells(row: Compared) -> list[str]:
    label, d, o = _label(row), row.cells, row.overall
    assert d is not None, "what could not be compared has no cells"
    if o is not None and not np.isfinite(o.mean):
        unknown = np.argwhere(~np.isfinite(d.mean))
        at = f" at {_where(row, d, tuple(unknown[0]))}" if len(unknown) else ""
        return [label, f"cannot say: no finite value{at}", NONE, NONE]
    whole = NONE if o is None else with_interval(float(o.mean), float(o.ci[0]), float(o.ci[1]))
    if d.smallest > LEVEL:
        return [label, whole, f"cannot say: {d.n_images} images are too few to test {d.n_tests} cells", NONE]
    found = (np.nan_to_num(d.p_holm, nan=1.0) < LEVEL) & (np.abs(d.mean) > row.rounding)
    unit = " pairs" if d.axes.count("layer") == 2 else ""
    half = "" if d.n_tests == 0 else f" of {d.n_tests}{unit}"
    count = int(found.sum()) // (2 if d.n_tests < np.isfinite(d.mean).sum() else 1)
    if not found.any():
        return [label, whole, f"0{half}", NONE]
    place = np.unravel_index(np.argmax(np.where(found, np.abs(d.mean), -1)), d.mean.shape)
    return [label, whole, f"{count}{half}", f"{number(float(d.mean[place]))} at {_where(row, d, place)}"]


def _label(row: Compared) -> str:
    place = SITES[row.site] if row.of == "maps" else row.of
    return f"{row.metric} ({place})" + (f", {row.stage}" if row.stage != "trunk" else "")


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
