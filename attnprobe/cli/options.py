"""Options and output that several commands share."""

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


def show(examined: Any, files: list[Path], *, details: bool = False) -> None:
    """Print the verdict of each model, and the names of the files written."""
    from rich.console import Console

    from attnprobe.reports import print_report

    print_report(examined, Console(), details=details)
    for path in files:
        print(path)
