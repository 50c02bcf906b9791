"""How does a noun show itself at the end of a notebook cell? As a small table; whatever stands in it is escaped."""

from collections.abc import Mapping
from html import escape

MOST = 120
"""Letters of one value; a longer one is cut."""


def table(title: str, rows: Mapping[str, object]) -> str:
    """HTML of a title and a row per fact."""
    left = "style='text-align:left'"
    shown = "".join(
        f"<tr><th {left}>{escape(name)}</th><td {left}>{escape(_short(value))}</td></tr>"
        for name, value in rows.items()
    )
    return f"<table><caption {left}><b>{escape(title)}</b></caption><tbody>{shown}</tbody></table>"


def line(title: str, rows: Mapping[str, object]) -> str:
    """The same for a terminal: one line."""
    return f"<{title}: {'; '.join(f'{name} {_short(value)}' for name, value in rows.items())}>"


def _short(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= MOST else f"{text[: MOST - 1]}…"
