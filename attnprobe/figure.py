"""From maps files or runs to one figure for a paper: the file's ending says the format, the width fits a page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from attnprobe import pipeline
from attnprobe.core import fs
from attnprobe.core.errors import InputError, did_you_mean
from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Measurement
from attnprobe.plots import PLOTS, attention_grid, filmstrip, onset
from attnprobe.plots.style import COLOURS

WIDTHS = {"column": 3.25, "text": 6.875}
"""Inches; of a two-column page, as most conferences of the field have it."""

PRINT = {"font.size": 8, "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}
"""Letters as small as a paper's captions, and kept as letters."""


@dataclass(frozen=True, slots=True)
class Kind:
    """How a figure is asked for: the metric it shows unless told otherwise, its height for a width of 1, and whether
    several runs share one Axes."""

    metric: str
    height: float
    shared: bool = False


KINDS: Mapping[str, Kind] = {
    "layer_matrix": Kind("layer_similarity", 0.9),
    "depth_curve": Kind("similar_blocks", 0.7, shared=True),
    "threshold_curve": Kind("similar_blocks", 0.7, shared=True),
    "similar_fraction": Kind("similar_blocks", 0.7, shared=True),
    "layer_head": Kind("row_entropy", 0.6),
    "head_scatter": Kind("attention_distance", 0.75),
    "head_grid": Kind("head_divergence", 0.85),
    "head_embedding": Kind("head_divergence_across_layers", 0.9),
    "attention_grid": Kind("", 0.9),
    "filmstrip": Kind("layer_similarity", 0.55),
    "onset": Kind("similar_blocks", 0.7),
}


def draw(
    paths: Sequence[Path | str],
    figure: str,
    out: Path,
    *,
    metric: str | None = None,
    width: str | float = "column",
) -> Path:
    """Draw one figure of one or several maps files (or runs) into `out`.

    Args:
        figure: a name in `KINDS`. Curves of several runs share one Axes; other figures stand side by side.
        out: .pdf, .svg, .png ...
        metric: what to show, as `examine` takes it ("similar_blocks:tau=0.8"); the figure's own if None.
        width: of the whole figure: "column", "text", or inches.

    Raises:
        InputError: no such figure, width or ending; the metric has other axes; there are no pictures or no history.
        WorkError: `out` cannot be written.
    """
    if figure not in KINDS:
        raise InputError(f"no figure {figure!r}; there are {', '.join(KINDS)}.{did_you_mean(figure, KINDS)}")
    kind, inches = KINDS[figure], _inches(width)
    if out.suffix.lstrip(".").lower() not in Figure().canvas.get_supported_filetypes():
        raise InputError(f"{out}: cannot draw {out.suffix or 'a file without ending'}; use .pdf, .svg or .png.")
    wanted = metric or kind.metric
    live = figure in ("attention_grid", "filmstrip", "onset")
    examined = [
        pipeline.examine(path, metrics=[] if live else [wanted], pictures=int(figure == "attention_grid"))
        for path in paths
    ]
    style: dict[Any, Any] = {**PRINT, "axes.prop_cycle": cycler(color=COLOURS)}
    with mpl.rc_context(style):
        panels = 1 if kind.shared else len(examined)
        sheet = Figure(figsize=(inches, inches * kind.height / panels), layout="constrained")
        axes = sheet.subplots(1, panels, squeeze=False)[0]
        if figure == "similar_fraction":
            PLOTS[figure].function([_measurement(e, wanted) for e in examined], axes[0])
        else:
            for k, one in enumerate(examined):
                _draw_one(one, figure, wanted, axes[0 if kind.shared else k], named=len(examined) > 1)
        with fs.as_work_error(f"writing {out}"):
            fs.make_folder(out.parent)
            sheet.savefig(out, dpi=300, bbox_inches="tight", pad_inches=0.02)
    return out


def _draw_one(one: Examined, figure: str, metric: str, ax: Axes, *, named: bool) -> None:
    title: dict[str, Any] = {"title": one.name} if named else {}
    if figure == "attention_grid":
        if not one.pictures:
            raise InputError(f"{one.name}: the images are not at hand, so there is nothing to draw attention on.")
        attention_grid(one.pictures[0], ax, **title)
    elif figure in ("filmstrip", "onset"):
        if one.history is None:
            raise InputError(f"{one.name} has no history; train with --set probe_every=1, and name the run's folder.")
        (filmstrip if figure == "filmstrip" else onset)(one.history, ax, metric=metric, **title)
    else:
        m = _measurement(one, metric)
        draw_it = PLOTS[figure].function
        if KINDS[figure].shared:
            draw_it(m, ax, label=one.name)
        else:
            draw_it(m, ax)
            if named:
                ax.set_title(one.name, fontsize="medium", parse_math=False)


def _measurement(one: Examined, metric: str) -> Measurement:
    """The metric at the maps that multiply V, if both are there; in the trunk, if there are stages."""
    name = metric.partition(":")[0]
    if name in one.measurements:
        return one.measurements[name]
    found = [key for key in one.measurements if key.rpartition("/")[2].partition("@")[0] == name]
    if not found:
        raise InputError(f"{one.name}: {name} has no meaning on these maps.")
    return one.measurements[found[0]]


def _inches(width: str | float) -> float:
    try:
        inches = WIDTHS[width] if isinstance(width, str) and width in WIDTHS else float(width)
    except ValueError:
        inches = 0.0
    if not 1 <= inches <= 40:
        raise InputError(f"width={width!r} must be column, text, or 1 to 40 inches.")
    return inches
