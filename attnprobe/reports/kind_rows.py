"""The verdicts of all runs side by side: a row per kind of collapse, and the figure of the number that decides it."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator, ScalarFormatter

from attnprobe.core.examined import Examined
from attnprobe.plots.style import GREY, band, legend, line_label, number_from_one, untrained_line
from attnprobe.reports.drawing import Drawing, as_svg, canvas
from attnprobe.reports.finding import Finding, Found
from attnprobe.reports.kinds import Kind, kind_named
from attnprobe.reports.numbers import number
from attnprobe.reports.series import named
from attnprobe.reports.verdict import Verdict

Mark = Literal["found", "single", "explained", "none", "unknown"]
MARKS: dict[Found, Mark] = {"yes": "found", "no": "none", "cannot say": "unknown"}

BEYOND = "#b3261e"
"""Tint of the side of the bar on which a kind counts as found."""


@dataclass(frozen=True, slots=True)
class Cell:
    """The answer of one run on one kind: a mark, the answer in words, the number that decides, and details."""

    mark: Mark
    answer: str
    number: str
    detail: str


@dataclass(frozen=True, slots=True)
class KindRow:
    """One kind of collapse: the side of its bar on which it is found, the answers of all runs, and its figure."""

    kind: Kind
    bar: str
    cells: tuple[Cell, ...]
    drawing: Drawing | None


def kind_rows(runs: Sequence[tuple[Examined, Verdict]], width: float, first_width: float) -> list[KindRow]:
    """A row per kind: those found come first, the one in most of the blocks before the others.

    Args:
        width: of the figures in inches; `first_width` of that of the first kind which has one.
    """
    names = [name for name, _ in named([e for e, _ in runs])]
    rows, wide = [], True
    for findings in sorted(zip(*(found.findings for _, found in runs), strict=True), key=_rank):
        f = findings[0]
        drawn = {name: finding for name, finding in zip(names, findings, strict=True) if _is_known(finding)}
        drawing = _drawing(drawn, names, first_width if wide else width) if drawn else None
        wide = wide and drawing is None
        rows.append(KindRow(kind_named(f.kind), f.beyond, tuple(map(_cell, findings)), drawing))
    return rows


def _rank(findings: Sequence[Finding]) -> tuple[float, ...]:
    """Sorting key: found in how much of a run, in single blocks, explained by another kind, not found, unknown."""
    found = [f for f in findings if f.found == "yes"]
    whole = max((f.share for f in found if not f.single), default=0.0)
    single = max((f.share for f in found if f.single), default=0.0)
    return -whole, -single, -sum(f.is_explained for f in findings), -sum(f.found == "no" for f in findings)


def _cell(f: Finding) -> Cell:
    mark: Mark = "single" if f.single else "explained" if f.is_explained else MARKS[f.found]
    untrained = "" if f.untrained is None else f"; untrained {number(f.untrained)}"
    return Cell(mark, f.answer, f"{f.deciding}{untrained}", f.detail)


def _is_known(f: Finding) -> bool:
    return f.levels is not None and bool(np.isfinite(f.levels.mean).any())


def _drawing(findings: dict[str, Finding], names: Sequence[str], width: float) -> Drawing:
    """The number of every block against the bar; blocks that count are dots."""
    f = next(iter(findings.values()))
    words = f"{f.words[0].upper()}{f.words[1:]}"
    with canvas(width, 2.5 + 0.1 * len(findings)) as figure:
        ax = figure.add_subplot()
        for name, finding in findings.items():
            _line(ax, finding, name, f"C{names.index(name)}")
        deepest = max(finding.levels.numbers[-1] for finding in findings.values() if finding.levels)
        number_from_one(ax.xaxis, deepest, start=1)
        ax.set_xlim(0.5, deepest + 0.5)
        values = list(_values(findings.values()))
        if f.bar > 1:  # a number of tokens, directions or times the median: open at the top
            ax.set_yscale("log")
            for formatter in (ax.yaxis.set_major_formatter, ax.yaxis.set_minor_formatter):
                formatter(ScalarFormatter())
            ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
            low, high = min(value for value in values if value > 0) / 1.2, max(values) * 1.2
        else:
            low, high = min(0.0, *values), max(1.0, *values) + 0.03
        ax.set_ylim(low, high)
        ax.axhline(f.bar, color=GREY, linewidth=0.8)
        ax.axhspan(*((low, f.bar) if f.below else (f.bar, high)), color=BEYOND, alpha=0.08, linewidth=0)
        ax.set(xlabel="block")
        legend(ax)
        told = [f"{name}: {_cell(finding).answer}, {_cell(finding).number}" for name, finding in findings.items()]
        what = f.quantity.rstrip(",")
        alt = f"{words}: {what} of every block. {'; '.join(told)}."
        return replace(as_svg(figure, alt, words, ""), note=f"{what[0].upper()}{what[1:]}; found {f.beyond}.")


def _line(ax: Axes, f: Finding, name: str, colour: str) -> None:
    levels = f.levels
    assert levels is not None
    blocks = np.asarray(levels.numbers)
    ax.plot(blocks, levels.mean, color=colour, linewidth=1.5, label=line_label(name))
    band(ax, blocks, (levels.low, levels.high), colour)
    counted = np.isin(blocks, f.blocks)
    ax.plot(blocks[counted], levels.mean[counted], "o", color=colour, markersize=4, label="_counted")
    if np.isfinite(levels.untrained).any():
        untrained_line(ax, blocks, levels.untrained, colour)


def _values(findings: Iterable[Finding]) -> Iterator[float]:
    """Every finite number that is drawn, and the bar."""
    for f in findings:
        levels = f.levels
        assert levels is not None
        yield f.bar
        for values in (levels.mean, levels.untrained, levels.low, levels.high):
            yield from values[np.isfinite(values)].tolist()
