"""From maps files or runs to one figure for a paper: the file's ending says the format, the width fits a page."""

import shlex
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import matplotlib as mpl
from cycler import cycler
from matplotlib.figure import Figure

from attnprobe.core.errors import InputError, check_choice, option
from attnprobe.core.examined import AttendedImage
from attnprobe.core.figures import FIGURES
from attnprobe.core.history import History
from attnprobe.core.measurement import Measurement, Measurements
from attnprobe.core.text import short
from attnprobe.io import fs
from attnprobe.io.reference import NOT_SAID, UserImages
from attnprobe.io.remote import place
from attnprobe.io.run import Run, maps_of, name_of
from attnprobe.metrics import atlases
from attnprobe.plots import PLOTS, similar_fraction
from attnprobe.plots.head_atlas import fit_letters
from attnprobe.plots.heat_maps import side_by_side
from attnprobe.plots.style import COLOURS
from attnprobe.store import open_maps
from attnprobe.store.history import read_history
from attnprobe.workflows.differences import say_what_is_left_out, whole_network
from attnprobe.workflows.groups import named_groups
from attnprobe.workflows.measure import examine, pictures_of

WIDTHS = {"column": 3.25, "text": 6.875}
"""Inches; of a two-column page, as most conferences of the field have it."""

PRINT = {"font.size": 8, "pdf.fonttype": 42, "ps.fonttype": 42, "svg.fonttype": "none"}
"""Letters as small as a paper's captions, and kept as letters."""


BELOW = 0.9
"""Inches that the colour bar of several heat maps takes."""

LETTERS = 13
"""Letters of a title that fit on an inch."""

HISTORIES = ("filmstrip", "onset")
"""Figures of a run while it trained."""


def draw(
    paths: Sequence[Path | str],
    figure: str,
    out: Path,
    *,
    metric: str | None = None,
    width: str | float = "column",
    user: UserImages = NOT_SAID,
) -> Path:
    """Draw one figure of one or several maps files (or runs) into `out`.

    Args:
        paths: maps files or runs; for "depth_curve" also methods of several runs, `"vit=runs/vit_s*"`.
        figure: a name in `core.figures`. Curves of several runs share one Axes, heat maps stand side by
            side, other figures below one another.
        out: .pdf, .svg, .png ...
        metric: what to show, as `examine` takes it ("similar_blocks:tau=0.8"); the figure's own if None.
        width: of the whole figure: "column", "text", or inches.
        user: where the images are, for figures that show some, if the file may not choose them itself.

    Raises:
        InputError: no such figure, width or ending; the metric has other axes; there are no images or no history.
        WorkError: `out` cannot be written.
    """
    check_choice("figure", figure, tuple(FIGURES))
    if not paths:
        raise InputError("nothing to draw; name a maps file or a run, or several.")
    if figures := [path for path in map(str, paths) if path in FIGURES and not Path(path).exists()]:
        files = [path for path in map(str, paths) if path not in figures] or ["MAPS"]
        command = shlex.join(["attnprobe", "plot", *files, "--figure", figures[0], "-o", str(out)])
        raise InputError(f"{figures[0]} is a figure, not a file: {command}")
    kind, inches = FIGURES[figure], _inches(width)
    if out.suffix.lstrip(".").lower() not in Figure().canvas.get_supported_filetypes():
        raise InputError(f"{out}: cannot draw {out.suffix or 'a file without ending'}; use .pdf, .svg or .png.")
    wanted, groups = metric or kind.metric, named_groups(paths)
    if groups is not None and figure != "depth_curve":
        raise InputError(f"{figure} draws single runs; of methods of several runs there is --figure depth_curve.")
    if groups is not None:
        shown: list[Any] = [[_what(path, figure, wanted, user) for path in its] for its in groups.values()]
        names = list(groups)
    else:
        shown = [_what(place(path), figure, wanted, user) for path in paths]
        names = [name_of(maps_of(place(path))) for path in paths]
    style: dict[Any, Any] = {**PRINT, "axes.prop_cycle": cycler(color=COLOURS)}
    with mpl.rc_context(style):
        across = len(shown) if kind.heat else 1
        down = 1 if kind.heat or kind.shared else len(shown)
        height = inches * kind.height * down / across + (BELOW if across > 1 else 0)
        sheet = Figure(figsize=(inches, height), layout="constrained")
        axes = list(sheet.subplots(down, across, squeeze=False).flat)
        function: Any = PLOTS[figure]
        if figure == "similar_fraction":
            similar_fraction(shown, axes[0])
        elif kind.shared:
            for one, name in zip(shown, names, strict=True):
                function(one, axes[0], label=name)
        elif across > 1:
            sites = [f"\n{m.place}" if len({m.site for m in shown}) > 1 else "" for m in shown]
            letters = int(inches / across * LETTERS)
            side_by_side(function, shown, axes, [short(n, letters) + s for n, s in zip(names, sites, strict=True)])
        else:
            for one, name, ax in zip(shown, names, axes, strict=True):
                more = {"metric": wanted} if figure in HISTORIES else {}
                function(one, ax, **more)
                if len(shown) > 1:
                    key = ax.get_legend()  # it lies above the Axes, where a title would run into it
                    if key is None or key.get_window_extent().y0 < ax.get_window_extent().y0:  # or below it
                        ax.set_title(name, fontsize="medium", parse_math=False)
                    else:
                        key.set_title(name, {"size": "medium"})
                        key.get_title().set_parse_math(False)
        if figure == "head_atlas":
            for ax in axes:  # only now it is known how large each is
                fit_letters(ax)
        with fs.as_work_error(f"writing {out}"):
            fs.make_folder(out.parent)
            sheet.savefig(out, dpi=300)
    return out


def _what(path: Path, figure: str, metric: str, user: UserImages) -> Measurement | AttendedImage | History:
    """Measurement, image or history of one maps file or run that the figure shows."""
    maps = maps_of(path)
    if figure in HISTORIES:
        history = read_history(Run(path if path.is_dir() else path.parent).probe)
        if history is None:
            raise InputError(f"{path} has no history; train with --set probe_every=1, and name the run's folder.")
        return history
    if figure == "attention_grid":
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")  # the command line shows none that are laid to a figure
            pictures = pictures_of(open_maps(maps), 1, user)
        if not pictures:
            why = "".join(f" ({warning.message})" for warning in said[:1])
            raise InputError(
                f"{path}: the images are not at hand{why}, so there is nothing to draw attention on; name them with "
                f"{option('data', python='user=UserImages(...)')}."
            )
        return pictures[0]
    examined = examine(maps, metrics=[metric], pictures=0)
    found = examined.measurements
    name = metric.partition(":")[0]
    if figure == "head_atlas":
        found, name = Measurements(atlases(found)), "head_types"
    if not (same := found.select(name)):
        raise InputError(f"{path}: {name} is not defined on its maps.")
    # Of the trunk on effective attention if it is there, else of the stage with the most blocks, as in a report.
    m = found.get(name) or max(same, key=lambda m: m.n_blocks)
    if figure == "depth_curve" and m.together:
        with suppress(InputError):  # what compares blocks is of one stage
            return whole_network(examined, m)
    say_what_is_left_out(path, examined, m)
    return m


def _inches(width: str | float) -> float:
    try:
        inches = WIDTHS[width] if isinstance(width, str) and width in WIDTHS else float(width)
    except ValueError:
        inches = 0.0
    if not 1 <= inches <= 40:
        raise InputError(f"width={width!r} must be column, text, or 1 to 40 inches.")
    return inches
