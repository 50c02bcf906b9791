"""Text for people: outside text made visible, block numbers in words, and how a noun shows itself in a notebook.

Control characters can move a terminal's cursor, and bidirectional controls show "exe.jpg" for "gpj.exe". `visible`
writes both as ‹U+202E›, so that a reader sees what is there; escaping for HTML or Markdown comes after it.
"""

import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from html import escape

from attnprobe.core.errors import InputError

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories: control, format (with all bidi controls), surrogate, private, unassigned, line separators."""

LONGEST = 300
"""Letters of one value in a noun's table; a longer one is cut."""

LEFT = "style='text-align:left'"


def visible(text: object) -> str:
    """The text with every invisible character written as its code point."""
    return "".join(f"‹U+{ord(c):04X}›" if unicodedata.category(c) in HIDDEN else c for c in str(text))


def short(text: object, length: int = 24) -> str:
    """`visible` text, cut to the width of a legend or a column."""
    text = visible(text)
    return text if len(text) <= length else f"{text[: length - 1]}…"


def markdown(text: object) -> str:
    """`visible` text with everything that Markdown or HTML would read as markup escaped."""
    escaped = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*[]|$~" else c for c in escaped)


def cell(value: object) -> object:
    """A value of a CSV file; text that a spreadsheet would take for a formula gets an apostrophe in front."""
    if not isinstance(value, str):
        return value
    return f"'{visible(value)}" if value.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else visible(value)


def blocks_text(blocks: Sequence[int]) -> str:
    """[3, 4, 5, 9] -> `blocks 3–5 and 9`; at least one block, ascending."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    words = [str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs]
    listed = " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]
    return f"block{'s' if len(blocks) > 1 else ''} {listed}"


RANGE = re.compile(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?")

LONGEST_RANGE = 1000
"""Bound on one range of numbers, which is more likely a typing error beyond it."""


def numbers(option: str, text: str, least: int = 1) -> list[int]:
    """`1-4,12` -> [1, 2, 3, 4, 12], in order and without repeats.

    Raises:
        InputError: not of this form, a number below `least`, or a range of more than `LONGEST_RANGE`.
    """
    found: set[int] = set()
    for part in text.split(","):
        match = RANGE.fullmatch(part)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
        if not least <= first <= last < first + LONGEST_RANGE:
            raise InputError(f"{option}={text!r} must be numbers from {least} and ranges, such as {least}-4,12.")
        found.update(range(first, last + 1))
    return sorted(found)


def one_run_each(n: int) -> str:
    """The sentence beside every comparison of single runs: another seed of each recipe would give other numbers."""
    these = "these two checkpoints" if n == 2 else f"these {n} checkpoints"
    return f"One run each: about {these}, not about the methods."


class Shown(ABC):
    """A noun that shows its `facts` as a table in a notebook and as one line in a terminal."""

    __slots__ = ()

    @abstractmethod
    def facts(self) -> dict[str, object]:
        """{property: words}, the ones a reader wants first."""

    @property
    def _title(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        return f"<{_value(self._title)}: {'; '.join(f'{name} {_value(fact)}' for name, fact in self.facts().items())}>"

    def _repr_html_(self) -> str:
        return table(self._title, self.facts().items())


def table(title: str, rows: Iterable[Sequence[object]], head: Sequence[str] = ()) -> str:
    """HTML table of a title, columns named `head`, and rows; everything escaped, for `_repr_html_`.

    A row has at least two cells, the first of which is its name; its last one spans what is missing of `head`.
    """
    columns = f"<thead>{_row(head, 'th', len(head))}</thead>" if head else ""
    body = "".join(_row(row, "td", len(head)) for row in rows)
    return f"<table><caption {LEFT}><b>{escape(visible(title))}</b></caption>{columns}<tbody>{body}</tbody></table>"


def _row(cells: Sequence[object], tag: str, width: int) -> str:
    name, *between, last = (escape(_value(cell)) for cell in cells)
    span = f" colspan='{width - len(cells) + 1}'" if len(cells) < width else ""
    middle = "".join(f"<{tag} {LEFT}>{cell}</{tag}>" for cell in between)
    return f"<tr><th {LEFT}>{name}</th>{middle}<{tag} {LEFT}{span}>{last}</{tag}></tr>"


def _value(value: object) -> str:
    return short(f"{value:.4g}" if isinstance(value, float) else value, LONGEST)
