"""Progress bars with an estimate on a terminal; silent elsewhere."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Called with the number of steps just done and a short note on the state."""

    def __call__(self, steps: int = 1, note: str = "") -> None: ...


def silent(steps: int = 1, note: str = "") -> None:
    """Nothing is shown."""


@contextmanager
def progress(description: str, total: int, *, done: int = 0) -> Iterator[Advance]:
    """A bar on stderr: `with progress("capture", 360) as advance: advance(16, "16 images/s")`."""
    if not sys.stderr.isatty() or os.environ.get("RANK", "0") != "0":  # of several processes the first one speaks
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total, completed=done, note="")
        yield lambda steps=1, note="": bar.update(task, advance=steps, note=note)
