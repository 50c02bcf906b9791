"""How does text from outside (names, labels, paths) stay text, and show what is in it?

Control characters can move a terminal's cursor, and bidirectional controls show "exe.jpg" for "gpj.exe"; both come out
as ‹U+202E›, so that a reader sees what is there. Escaping for HTML or Markdown comes after this.
"""

import unicodedata

HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories: control, format (with all bidi controls), surrogate, private, unassigned, line separators."""


def visible(text: object) -> str:
    """The text with every character that cannot be seen spelt out."""
    return "".join(f"‹U+{ord(c):04X}›" if unicodedata.category(c) in HIDDEN else c for c in str(text))


def short(text: object, length: int = 24) -> str:
    """The same, cut to the width that a legend or a column has."""
    shown = visible(text)
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"


def markdown(text: object) -> str:
    """The same, with everything that Markdown or HTML would read as markup escaped."""
    escaped = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*[]|$~" else c for c in escaped)
