"""A table for a paper: booktabs, with every character of a name as itself."""

from collections.abc import Sequence

from attnprobe.core.text import visible

ESCAPES = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "^": r"\textasciicircum{}", "~": r"\textasciitilde{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': r"\textquotedbl{}", "‹": r"\guilsinglleft{}", "›": r"\guilsinglright{}", "–": "--",
}  # fmt: skip


def latex(text: object) -> str:
    """The text as LaTeX sets it; characters that cannot be seen are spelt out, see `visible`."""
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
