"""The explorer as part of a page: its markup, its data, its script, the policy that lets it run, and its images."""

import base64
import hashlib
import html
import io
import json
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np
from PIL import Image

SCRIPTS = ("source", "colours", "words", "places", "atlas", "panel", "images", "explorer")
"""In this order; the last one starts the others."""


@cache
def template(name: str) -> str:
    """A file of the folder templates."""
    return (files("attnprobe.view") / "templates" / name).read_text("utf-8")


@cache
def script() -> str:
    """The whole script, in one function, so that it shares no name with anything else in the page."""
    return "\n(() => {\n" + "".join(template(f"{name}.js") for name in SCRIPTS) + "})();\n"


@cache
def script_hash() -> str:
    """The script's name in a Content-Security-Policy, which forbids every other script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script().encode()).digest()).decode()}'"


def section(index: Mapping[str, Any], maps: Mapping[str, str] | None = None) -> str:
    """The explorer as HTML: hidden until its script runs. Data is text that no script runs and no tag ends."""
    data = [f'<script type="application/json" id="explorer-index">{as_data(index)}</script>']
    for name, text in (maps or {}).items():
        data.append(f'<script type="text/plain" id="maps-{html.escape(name)}">{html.escape(text)}</script>')
    return "\n".join([template("explorer.html"), *data, f"<script>{script()}</script>"])


def as_data(value: Any) -> str:
    """JSON inside a script element: without "<" there is neither "</script>" nor "<!--"."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def whole_page(index: Mapping[str, Any]) -> str:
    """The page that the viewer serves."""
    names = ", ".join(run["name"] for run in index["runs"])
    return Template(template("view.html")).substitute(
        title=html.escape(names), style=template("theme.css") + template("explorer.css"), section=section(index)
    )


SMALL = 64
"""Longest side in pixels up to which an image is stored without loss."""


def as_file(pixels: np.ndarray) -> tuple[bytes, str]:
    """[row, col, 3], uint8 -> a PNG or WebP file and its media type."""
    file = io.BytesIO()
    kind = "png" if max(pixels.shape[:2]) <= SMALL else "webp"
    Image.fromarray(pixels).save(file, kind, quality=85)
    return file.getvalue(), f"image/{kind}"
