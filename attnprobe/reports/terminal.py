"""A report on the terminal: a table that fits 80 columns, then the verdict of each run."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from attnprobe.core.examined import Examined
from attnprobe.core.text import one_run_each, visible
from attnprobe.reports.tables import SUMMARY_HEADER, summary_table
from attnprobe.reports.verdict import verdict

LABEL_WIDTH, RUN_WIDTH = 32, 18

STYLES = {"found": "bold red", "none found": "bold green"}


def print_report(runs: Sequence[Examined], console: Console) -> None:
    """Print the summary of all runs side by side and a verdict for each; more runs than fit become several tables."""
    at_once = max(1, (console.width - LABEL_WIDTH) // (RUN_WIDTH + 3))
    for start in range(0, len(runs), at_once):
        console.print(_table(runs[start : start + at_once]))
    if len(runs) > 1:
        console.print(one_run_each(len(runs)))
    for e in runs:
        found = verdict(e)
        headline = Text.assemble((visible(e.name), "bold"), ": ", (found.headline, STYLES.get(found.status, "bold")))
        console.print(headline)
        beware = (f"! {warning}" for warning in found.warnings)
        kinds = (f"- {finding.line}" for finding in found.findings)
        for sentence in filter(None, (*kinds, *beware, found.settings, found.advice and f"> {found.advice}")):
            console.print(Padding(Text(visible(sentence)), (0, 0, 0, 2), expand=False))


def _table(runs: Sequence[Examined]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column(SUMMARY_HEADER, max_width=LABEL_WIDTH, overflow="fold")
    for e in runs:
        table.add_column(Text(visible(e.name)), justify="right", overflow="fold")
    for label, *cells in summary_table(runs).itertuples(name=None):
        table.add_row(Text(label), *cells)
    return table
