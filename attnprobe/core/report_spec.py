"""Options of a report; `attnprobe report` is made of them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, Suppress, UseAppendAction, arg

Format = Literal["html", "json", "csv", "md"]


@dataclass(frozen=True, slots=True)
class ReportSpec:
    """One report: the maps, what to measure and to write, and what makes it fail a build."""

    maps: Annotated[Positional[tuple[Path, ...]], arg(metavar="MAPS|RUN")]
    """maps files, or runs that have one."""

    out: Annotated[Path, arg(aliases=["-o"])] = Path("attnprobe-report")
    """folder for report.html, measurements.json, measurements.csv and report.md."""

    formats: tuple[Format, ...] = ("html", "json", "csv", "md")
    """which of them to write."""

    metrics: Annotated[UseAppendAction[tuple[str, ...]], arg(name="metric")] = ()
    """name of a metric (`attnprobe explain`), with settings as in similar_blocks:tau=0.8,compare=any; "all" but the
    slow ones; "default". What the verdict and the types of heads need, if not given."""

    fail_on: Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="CONDITION")] = ()
    """end with exit code 3 where METRIC[.KEY][@SITE] OP NUMBER holds, such as similar_blocks.count.low>3 or
    row_entropy.min<0.5, or a kind of collapse, such as near_uniform>0 (blocks) or oversmoothing.found==1."""

    verify_drops: bool = False
    """measure the accuracy of each run without its similar blocks and redundant heads, as `attnprobe verify-drops`."""

    tolerance: float = 0.02
    """with --verify-drops: accuracy loss, as a fraction, that its advice accepts."""

    bars: Annotated[UseAppendAction[tuple[str, ...]], arg(name="bar", metavar="KIND=NUMBER")] = ()
    """bar from which on the verdict finds a kind of collapse, such as near_uniform=0.8."""

    data: str | None = None
    """the images the maps are of, to show them, where they are not digits, fractals, or inside the run's folder."""

    data_dir: Path | None = None
    """where that data set lives."""

    group: Annotated[str | None, arg(metavar="REGEX")] = None
    """images that count once together: a regular expression whose part in brackets, searched in their ids (paths in a
    folder), names the group, as in '^(.+)_' for photo7_0.png and photo7_1.png; their mean is one observation."""

    notes: Suppress[tuple[str, ...]] = ()
    """sentences that must stand beside the numbers."""
