"""The command that draws one figure; as in cli.py, torch and matplotlib load only when it runs."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

Positional = tyro.conf.Positional
Short = tyro.conf.arg


def plot(
    maps: Positional[Annotated[tuple[str, ...], Short(metavar="MAPS|RUN|NAME=RUNS")]],
    out: Annotated[Path, Short(aliases=["-o"])],
    figure: Literal[
        "layer_matrix",
        "depth_curve",
        "threshold_curve",
        "similar_fraction",
        "layer_head",
        "head_scatter",
        "head_grid",
        "head_embedding",
        "head_atlas",
        "layer_key",
        "attention_grid",
        "filmstrip",
        "onset",
    ] = "layer_matrix",
    metric: str | None = None,
    width: str = "column",
    data: str | None = None,
    data_dir: Path | None = None,
) -> None:
    """Draw one figure of maps files or runs, as wide as a paper's column or page.

    For example:

    $ attnprobe plot runs/vit -o matrix.pdf
    $ attnprobe plot runs/vit runs/deepvit --figure depth_curve --width text -o depth.pdf
    $ attnprobe plot "vit=runs/vit_s*" "deepvit=runs/deepvit_s*" --figure depth_curve -o methods.pdf
    $ attnprobe plot runs/vit --figure layer_head --metric effective_rank -o rank.png

    Args:
        maps: maps files, or runs that have one. Curves of several share one frame; others stand side by side. Of
            NAME=PATTERN, the runs of a method, depth_curve draws each run, their mean and its interval.
        out: the file; its ending says the format: .pdf, .svg, .png ...
        figure: what to draw.
        metric: what the figure shows (`attnprobe list metrics`), settings after a colon; the usual one if not given.
        width: column (3.25 inches), text (6.875), or a number of inches.
        data: the images that attention_grid shows, where they are not digits, fractals, or inside the run's folder.
        data_dir: where that data set lives.
    """
    from attnprobe.core.reference import UserImages
    from attnprobe.figure import draw

    print(draw(maps, figure, out, metric=metric, width=width, user=UserImages(data, data_dir)))
