"""Options and output that several commands share."""

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from attnprobe.core.spec import ImageOptions

Positional = tyro.conf.Positional
Repeated = tyro.conf.UseAppendAction
Short = tyro.conf.arg


@dataclass(frozen=True, slots=True)
class WhichCheckpoint:
    """The choice of a checkpoint of a run."""

    checkpoint: int | None = None
    """the one after this many epochs, of a run. The newest if not given."""
    allow_older: bool = False
    """use an older one if a run's newest is damaged. The newest that is intact."""

    def of(self, model: str) -> str:
        """The model as it was named, or the folder of the checkpoint that these options choose.

        Raises:
            CheckpointError: as `Run.choose_checkpoint`.
            InputError: a checkpoint was chosen, and `model` is not a run.
        """
        from attnprobe.core.errors import InputError
        from attnprobe.io.run import Run

        if self == NEWEST:
            return model
        run = Run.of(model)
        if not run.checkpoints.is_dir():
            raise InputError(f"--checkpoint and --allow-older are for runs of attnprobe train; {model} is none.")
        return str(run.choose_checkpoint(self.checkpoint, allow_older=self.allow_older))


NEWEST = WhichCheckpoint()


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialOptions(ImageOptions):
    """The model's name, and the labelled images it is evaluated on."""

    split: Annotated[str, Short(metavar="train|val")] = "val"
    """images that choose. val: one half of these chooses, the other judges; train: training images choose, those of val
    judge."""


EVERY_IMAGE = TrialOptions()
Which = tyro.conf.OmitArgPrefixes[WhichCheckpoint]
Trial = tyro.conf.OmitArgPrefixes[TrialOptions]


def say_next(*commands: str) -> None:
    """Name what can be done next, on a terminal: a program that reads what a command wrote needs no advice."""
    if sys.stderr.isatty() and os.environ.get("RANK", "0") == "0":  # of several processes the first one speaks
        sys.stdout.flush()  # or the advice would stand before what was written
        print(f"next: {', or '.join(commands)}", file=sys.stderr)


def say_what_shows(files: list[Path], maps: Sequence[Path] = ()) -> None:
    """Name the page among the files of a report, and the command that explores its maps."""
    pages = [f"open {shlex.quote(str(path))} in a browser" for path in files if path.suffix == ".html"]
    viewer = [shlex.join(["attnprobe", "view", *map(str, maps)])] if maps else []
    if commands := (*pages, *viewer):
        say_next(*commands)


def show(examined: Any, files: list[Path], *, details: bool = False) -> None:
    """Print the verdict of each model, and the names of the files written."""
    from rich.console import Console

    from attnprobe.reports import print_report

    print_report(examined, Console(), details=details)
    for path in files:
        print(path)
