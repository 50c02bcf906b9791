"""The commands that come after a report. As in `cli`: no logic, and torch loads only when one runs."""

from pathlib import Path
from typing import Annotated, Literal

import tyro

Positional = tyro.conf.Positional
Repeated = tyro.conf.UseAppendAction
Short = tyro.conf.arg


def compare(
    maps: Positional[tuple[Path, ...]],
    out: Annotated[Path, Short(aliases=["-o"])] = Path("attnprobe-comparison"),
    table: Literal["papers", "summary"] = "papers",
    metric: Repeated[tuple[str, ...]] = (),
    match_heads: bool = False,
) -> None:
    """Runs in one table for a paper, and where each differs from the first on the images both saw.

    Runs of other depth are compared at equal relative depth. Prints the table as Markdown.

    For example:

    $ attnprobe compare runs/vit runs/deepvit runs/refiner -o comparison
    $ attnprobe compare a.h5 b.h5 --table summary --metric row_entropy --match-heads

    Args:
        maps: maps files, or runs that have one; the first is what the others are compared with.
        out: folder for comparison.md, comparison.csv, comparison.tex (booktabs) and differences.csv (every cell).
        table: parameters, accuracy and similar blocks, as the papers have it; or the summary of a report.
        metric: as for report. Repeat for several.
        match_heads: pair the heads of each block by their maps first; for models of equal depth and heads.
    """
    from attnprobe import comparison

    _, files = comparison.compare(maps, out=out, table=table, metrics=metric or None, match_heads=match_heads)
    print(files[0].read_text(encoding="utf-8"), end="")
    for path in files:
        print(path)
