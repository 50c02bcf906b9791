"""Figures embedded in a page that loads nothing, in its light and its dark theme.

Each is an image in a data URI: an SVG inside <img> can neither run a script nor load anything, and its letters are
drawn as outlines, so names from outside never become markup. Ink has the colour of the page's text, whichever theme is
on.
"""

import base64
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
from cycler import cycler
from markupsafe import Markup
from matplotlib.figure import Figure

from attnprobe.plots.style import COLOURS

INK = "#010203"
"""Placeholder of the text colour until the SVG is written; no figure uses it for anything else."""

GREY = "#808080"
"""Ink of figures with photographs, which are bitmaps: legible on the light and the dark page (contrast 3.9 and 4.2)."""

THEMED = "<style>svg{color:#1c2024}@media(prefers-color-scheme:dark){svg{color:#dfe3e8}}</style>"  # as the page's text


@dataclass(frozen=True, slots=True)
class Drawing:
    """A figure ready for a page: `title` names it, `alt` describes its content, `settings` how it was measured.

    `note`: a sentence to be read with the figure. `wide`: it takes the whole width of the page, not half of it.
    """

    src: Markup
    alt: str
    title: str
    settings: str
    note: str = ""
    wide: bool = False


@contextmanager
def canvas(width: float, height: float, *, ink: str = INK) -> Iterator[Figure]:
    """A figure of this many inches, transparent, outside of pyplot; draw on it inside the `with`."""
    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "axes.titlecolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = dict.fromkeys(names, ink) | {
        "axes.facecolor": "none",
        "axes.prop_cycle": cycler(color=COLOURS),
        "legend.labelcolor": ink,
        "svg.fonttype": "path",
        "svg.hashsalt": "attnprobe",
    }
    with mpl.rc_context(style), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box, as in any terminal
        yield Figure(figsize=(width, height), layout="compressed", facecolor="none")


def as_svg(figure: Figure, alt: str, title: str, settings: str) -> Drawing:
    """A figure of lines and heat maps as SVG: sharp at any size, in the page's theme. Call inside `canvas`."""
    file = io.BytesIO()
    figure.savefig(file, format="svg", dpi=144, metadata={"Date": None, "Creator": None})
    svg = file.getvalue().decode()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    start = svg.index(">") + 1
    svg = svg[:start] + THEMED + svg[start:]
    return Drawing(as_uri("image/svg+xml", svg.encode()), alt, title, settings)


def as_photograph(
    figure: Figure, alt: str, title: str, settings: str, *, note: str = "", wide: bool = False
) -> Drawing:
    """A figure with photographs as WebP, at twice the size a page shows; with 16 blocks 41 kB as WebP, 408 kB as
    PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="webp", dpi=192, pil_kwargs={"quality": 80, "method": 4})
    return Drawing(as_uri("image/webp", file.getvalue()), alt, title, settings, note, wide)


def as_uri(kind: str, data: bytes) -> Markup:
    """The file as a data URI."""
    return Markup(f"data:{kind};base64,{base64.b64encode(data).decode()}")  # base64 holds no markup
