"""The summary as Markdown, to paste into an issue, a README or a paper's notes."""

from collections.abc import Sequence

from attnprobe.core.examined import Examined
from attnprobe.core.text import markdown, one_run_each
from attnprobe.reports.tables import summary_table
from attnprobe.reports.verdict import verdict


def to_markdown(runs: Sequence[Examined]) -> str:
    """Verdicts with their settings and warnings, then the summary table with the untrained networks beside."""
    lines = ["# Attention report", ""]
    for e in runs:
        found = verdict(e)
        lines += [f"**{markdown(e.name)}**: {markdown(found.headline)}", ""]
        kinds = (finding.line for finding in found.findings)
        told = (*kinds, *found.warnings, found.settings, found.advice)
        lines += [f"- {markdown(sentence)}" for sentence in told if sentence]
        lines += [""]
    shown = [run for e in runs for run in (e, e.untrained) if run is not None]
    table = summary_table(shown)
    lines += [f"| mean over images (95 % CI) | {' | '.join(markdown(name) for name in table.columns)} |"]
    lines += ["|---" + "|--:" * len(shown) + "|"]
    for label, *cells in table.itertuples(name=None):
        lines += [f"| {markdown(label)} | {' | '.join(markdown(cell) for cell in cells)} |"]
    lines += ["", one_run_each(len(runs))] if len(runs) > 1 else []
    return "\n".join([*lines, ""])
