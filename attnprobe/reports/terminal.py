"""A report on the terminal, in 80 columns: the verdict of each run, and every kind of collapse in one line.

Kinds are called as `--bar`, `--fail-on` and `attnprobe explain` know them.
"""

from collections.abc import Sequence

import pandas as pd
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from attnprobe.core.examined import Examined
from attnprobe.core.text import one_run_each, visible
from attnprobe.reports.finding import Finding
from attnprobe.reports.kinds import NAMES
from attnprobe.reports.numbers import accuracy_words, number, prepared_words, with_interval
from attnprobe.reports.tables import SUMMARY_HEADER, summary_table
from attnprobe.reports.verdict import Verdict, verdict

RUN_WIDTH = 18

STYLES = {"found": "bold red", "none found": "bold green", "yes": "red", "cannot say": "yellow"}
"""By the status of a verdict, or by whether a kind is found."""


def print_report(runs: Sequence[Examined], console: Console, *, details: bool = False) -> None:
    """Print a verdict for each run, and its kinds of collapse as a table.

    Args:
        details: also the summary of all runs side by side, and each kind in a sentence with its definition and source;
            more runs than fit become several tables.
    """
    verdicts = [verdict(e) for e in runs]
    if details:
        summary = summary_table(runs)
        for part in _side_by_side(console, [*summary.columns], max(map(len, summary.index), default=0)):
            console.print(_summary(summary.loc[:, list(part)]))
    else:
        for part in _side_by_side(console, list(zip(runs, verdicts, strict=True)), max(map(len, NAMES))):
            console.print(_one(part[0][1]) if len(runs) == 1 else _several(part))
    if len(runs) > 1:
        console.print(one_run_each(len(runs)))
    for e, found in zip(runs, verdicts, strict=True):
        name = Text.assemble((visible(e.name), "bold"), ": ", (found.headline, STYLES.get(found.status, "bold")))
        console.print(name)
        if len(runs) == 1 and not details and (accuracy := accuracy_words(e)):
            console.print(Padding(Text(accuracy), (0, 0, 0, 2), expand=False))
        kinds = (f"- {finding.line}" for finding in found.findings if details)
        beware = (f"! {warning}" for warning in found.warnings)
        settings = found.settings if details else ""
        words, command = found.next_step
        for sentence in filter(None, (*kinds, *beware, settings, words and f"> {words}")):
            console.print(Padding(Text(visible(sentence)), (0, 0, 0, 2), expand=False))
        if command:  # not wrapped, so that it can be copied
            console.print(Text(f"    {visible(command)}"), soft_wrap=True)


def _side_by_side(console: Console, runs: Sequence, labels: int) -> list[Sequence]:
    """As many of the runs at once as fit beside labels of that width."""
    at_once = max(1, (console.width - labels) // (RUN_WIDTH + 3))
    return [runs[start : start + at_once] for start in range(0, len(runs), at_once)]


def _frame(*columns: str | Text) -> Table:
    """An empty table: a column of labels, then numbers."""
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", overflow="fold", no_wrap=not place)
    return table


def _one(found: Verdict) -> Table:
    """Kinds of collapse of one run, with the number that decides each."""
    table = _frame("kind of collapse", "found", "number (95 % CI)", "block", "untrained", "bar")
    for f in found.findings:
        where = "" if f.block is None else str(f.block)
        beyond = f"{'<' if f.below else '>'} {number(f.bar)}"
        deciding = "" if f.number is None else with_interval(f.number, f.low, f.high)
        table.add_row(f.kind, _answer(f), deciding, where, "" if f.untrained is None else number(f.untrained), beyond)
    return table


def _several(runs: Sequence[tuple[Examined, Verdict]]) -> Table:
    """Kinds of collapse of several runs: in how many blocks, and the number that decides."""
    table = _frame("kind of collapse", *(Text(visible(e.name)) for e, _ in runs))
    accuracy = [e.info.get("accuracy") for e, _ in runs]
    if any(share is not None for share in accuracy):
        table.add_row("accuracy", *("" if share is None else f"{share:.1%}" for share in accuracy))
        if any(prepared := [prepared_words(e, short=True) for e, _ in runs]):
            table.add_row("accuracy at", *prepared)
    for kinds in zip(*(found.findings for _, found in runs), strict=True):
        numbers = ("" if f.number is None else f", {number(f.number)}" for f in kinds)
        cells = (_answer(f).append(text) for f, text in zip(kinds, numbers, strict=True))
        table.add_row(kinds[0].kind, *cells)
    return table


def _answer(f: Finding) -> Text:
    return Text(f.brief, style=STYLES.get(f.found, ""))


def _summary(quantities: pd.DataFrame) -> Table:
    """Quantities of several runs."""
    table = _frame(SUMMARY_HEADER, *(Text(visible(name)) for name in quantities.columns))
    for label, *cells in quantities.itertuples(name=None):
        table.add_row(Text(label), *cells)
    return table
