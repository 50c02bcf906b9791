"""Tables as Markdown and as LaTeX, and the report as Markdown to paste into an issue or a README."""

from collections.abc import Sequence

from attnprobe.core.examined import Examined
from attnprobe.core.text import markdown, one_run_each, visible
from attnprobe.reports.tables import SUMMARY_HEADER, summary_table
from attnprobe.reports.verdict import verdict


def to_markdown(runs: Sequence[Examined]) -> str:
    """The report as Markdown: verdicts with their settings and warnings, then the summary with untrained networks."""
    lines = ["# Attention report", ""]
    for e in runs:
        found = verdict(e)
        lines += [f"**{markdown(e.name)}**: {markdown(found.headline)}", ""]
        kinds = (finding.line for finding in found.findings)
        sentences = (*kinds, *found.warnings, found.settings, found.advice)
        lines += [f"- {markdown(sentence)}" for sentence in sentences if sentence]
        lines += [""]
    table = summary_table([run for e in runs for run in (e, e.untrained) if run is not None])
    lines += markdown_table((SUMMARY_HEADER, *table.columns), list(table.itertuples(name=None)))
    lines += ["", one_run_each(len(runs))] if len(runs) > 1 else []
    return "\n".join([*lines, ""])


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, every cell escaped; the first column is left-aligned, the others right."""
    lines = [f"| {' | '.join(map(markdown, header))} |", "|---" + "|--:" * (len(header) - 1) + "|"]
    return [*lines, *(f"| {' | '.join(map(markdown, row))} |" for row in rows)]


ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "‹": r"\guilsinglleft{}", "›": r"\guilsinglright{}", "–": "--",
}  # fmt: skip


def latex(text: object) -> str:
    """The text escaped for LaTeX; invisible characters become code points, see `visible`."""
    return "".join(ESCAPES.get(character, character) for character in visible(text))


def booktabs(header: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str, label: str) -> str:
    """A `table` with rules of the package booktabs; the first column is left-aligned, the others right.

    Needs `\\usepackage{booktabs}` and, for names with quotes, `\\usepackage[T1]{fontenc}`.
    """
    lines = [
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex(caption)}}}",
        rf"\label{{{label}}}",
        rf"\begin{{tabular}}{{l{'r' * (len(header) - 1)}}}",
        r"\toprule",
        _row(header),
        r"\midrule",
        *map(_row, rows),
        r"\bottomrule",
        r"\end{tabular}",
        r"\end{table}",
    ]
    return "\n".join([*lines, ""])


def _row(cells: Sequence[str]) -> str:
    line = " & ".join(map(latex, cells))
    return rf"{{}}{line} \\" if line.startswith("[") else rf"{line} \\"  # after \\ a bracket would be its argument
