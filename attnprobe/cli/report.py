"""The commands that show maps: report, compare, plot and view."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from attnprobe.cli.options import Positional, Repeated, Short, say_next, say_what_shows, show
from attnprobe.core.figures import FIGURES
from attnprobe.core.spec import FIRST, ReportSpec

if TYPE_CHECKING:
    Figure = str
else:  # the table of figures is the only list of them
    Figure = Literal[tuple(FIGURES)]


def report(
    spec: tyro.conf.OmitArgPrefixes[ReportSpec], verbose: Annotated[bool, FIRST, Short(aliases=["-v"])] = False
) -> None:
    """Report on maps files or runs, several side by side.

    For example:

    $ attnprobe report runs/vit
    $ attnprobe report runs/vit runs/deepvit -o comparison
    $ attnprobe report maps.h5 --metric row_entropy --formats json
    $ attnprobe report maps.h5 --metric all --metric similar_blocks:center=mean
    $ attnprobe report runs/vit --verify-drops
    $ attnprobe report runs/vit --fail-on "repetition>3" --fail-on "accuracy<0.9"

    Args:
        verbose: print all measurements, and each kind of collapse with its source.
    """
    from attnprobe.reports.gate import insist
    from attnprobe.workflows import report as workflow

    examined, files = workflow.report(spec)
    show(examined, files, details=verbose)
    outcomes = workflow.gate(examined, spec.fail_on)
    for outcome in outcomes:
        print(outcome)
    say_what_shows(files, spec.maps)
    insist(outcomes)


def compare(
    maps: Positional[Annotated[tuple[str, ...], Short(metavar="MAPS|RUN|NAME=RUNS")]],
    out: Annotated[Path, Short(aliases=["-o"], metavar="FOLDER")] = Path("attnprobe-comparison"),
    table: Literal["papers", "summary"] = "papers",
    metric: Annotated[Repeated[tuple[str, ...]], Short(metavar="NAME")] = (),
    match_heads: bool = False,
    group: Annotated[str | None, Short(metavar="REGEX")] = None,
) -> None:
    """Compare runs, or methods of several runs, in a table for a paper.

    All are compared with the first.
    Single runs are compared on the images both saw, which says nothing about other seeds. NAME=PATTERN names two or
    more runs of one method: intervals and tests are then over runs and images. Runs of different depth are compared at
    equal relative depth. Prints the table as Markdown.

    For example:

    $ attnprobe compare "vit=runs/vit_s*" "deepvit=runs/deepvit_s*" -o comparison
    $ attnprobe compare runs/vit runs/deepvit runs/refiner -o comparison
    $ attnprobe compare a.h5 b.h5 --table summary --metric row_entropy --match-heads
    $ attnprobe capture runs/vit/checkpoints/epoch-0005 --data digits -o epoch5.h5
    $ attnprobe compare epoch5.h5 runs/vit -o since-epoch-5

    Args:
        maps: maps files, or runs that have one, or NAME=PATTERN for several runs of a method. A name may be repeated
            with more runs.
        out: folder for comparison.md, .csv, .tex (booktabs) and differences.csv. It holds every cell; of methods there
            is also depth.png.
        table: papers: parameters, accuracy and similar blocks; summary: that of a report.
        metric: metric with settings, as in `attnprobe report`; repeat for several.
        match_heads: first pair the heads of each block by their maps. For models of equal depth and heads.
        group: images that count as one observation, as in `attnprobe report`.
    """
    from attnprobe.workflows import compare as comparison

    how = {"table": table, "metrics": metric or None, "match_heads": match_heads, "group": group}
    _, files = comparison.compare(maps, out=out, **how)
    print(files[0].read_text(encoding="utf-8"), end="")
    for path in files:
        print(path)
    say_next(shlex.join(["attnprobe", "plot", *maps, "--figure", "depth_curve", "-o", "depth.pdf"]))


def plot(
    maps: Positional[Annotated[tuple[str, ...], Short(metavar="MAPS|RUN|NAME=RUNS")]],
    out: Annotated[Path, Short(aliases=["-o"], metavar="FILE")],
    figure: Annotated[Figure, Short(metavar="FIGURE")] = "layer_matrix",
    metric: Annotated[str | None, Short(metavar="NAME")] = None,
    width: Annotated[str, Short(metavar="WIDTH")] = "column",
    data: Annotated[str | None, Short(metavar="DATA")] = None,
    data_dir: Annotated[Path | None, Short(metavar="FOLDER")] = None,
) -> None:
    """Draw one figure of maps files or runs, for a paper.

    For example:

    $ attnprobe plot runs/vit -o matrix.pdf
    $ attnprobe plot runs/vit runs/deepvit --figure depth_curve -o depth.pdf
    $ attnprobe plot "vit=runs/vit_s*" --figure depth_curve -o methods.pdf
    $ attnprobe plot runs/vit --figure layer_head --metric row_entropy -o heads.png

    Args:
        maps: maps files, or runs that have one. Curves of several share one frame, heat maps stand side by side, other
            figures below one another. Given NAME=PATTERN, the runs of a method, depth_curve draws each run, their mean
            and its interval.
        out: the file; its ending chooses the format: .pdf, .svg, .png, and what else matplotlib writes.
        figure: the kind of figure (`attnprobe list plots`).
        metric: the metric to draw (`attnprobe list metrics`), settings after a colon; a usual one if not given.
        width: column (3.25 inches), text (6.875), or a number of inches.
        data: the images of attention_grid. Needed unless they are digits, fractals, or inside the run's folder.
        data_dir: folder of that data set.
    """
    from attnprobe.io.reference import UserImages
    from attnprobe.workflows.figure import draw

    print(draw(maps, figure, out, metric=metric, width=width, user=UserImages(data, data_dir)))


def view(
    maps: Positional[Annotated[tuple[Path, ...], Short(metavar="MAPS|RUN")]],
    port: int = 0,
    no_browser: bool = False,
    data: Annotated[str | None, Short(metavar="DATA")] = None,
    data_dir: Annotated[Path | None, Short(metavar="FOLDER")] = None,
) -> None:
    """Explore the maps of a file of any size in a browser.

    They are served from this machine only, until Ctrl-C. In the background, as from a script, it gets no Ctrl-C: stop
    it with `kill PID` (SIGTERM). The exit code is 130 after Ctrl-C and 75 after SIGTERM.

    For example:

    $ attnprobe view maps.h5
    $ attnprobe view runs/vit runs/deepvit --no-browser

    Args:
        maps: maps files or runs; several are shown side by side.
        port: 0 for a free one.
        no_browser: only print the address.
        data: the captured images. Needed unless they are digits, fractals, or inside the run's folder.
        data_dir: folder of that data set.
    """
    from attnprobe.io.reference import UserImages
    from attnprobe.workflows import view as viewing

    viewing.view(maps, port=port, browser=not no_browser, user=UserImages(data, data_dir))
