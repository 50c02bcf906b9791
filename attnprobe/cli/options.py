"""Options and output that several commands share."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

Positional = tyro.conf.Positional
Repeated = tyro.conf.UseAppendAction
Short = tyro.conf.arg


@dataclass(frozen=True, slots=True)
class WhichCheckpoint:
    """The choice of a checkpoint of a run."""

    checkpoint: int | None = None
    """for a run: the checkpoint after this many epochs; the newest if not given."""
    allow_older: bool = False
    """for a run whose newest checkpoint is damaged: use the newest intact one instead of refusing."""

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


@dataclass(frozen=True, slots=True)
class TrialOptions:
    """The model's name, and the labelled images it is evaluated on."""

    architecture: Annotated[str | None, Short(name="model")] = None
    """the model's name, for checkpoint files that neither say it nor show it."""
    data: str | None = None
    """labelled images; the run's own if not given."""
    data_dir: Path | None = None
    """where the data set lives."""
    split: str = "val"
    """val: one half of these images chooses, the other judges; train: training images choose, those of val judge."""
    images: int | None = None
    """a fixed, class-balanced subset of this many, of each split."""
    batch_size: int = 64
    """images per forward pass, also where it is timed."""
    device: str = "auto"
    """cpu, cuda, mps; auto takes a GPU if there is one."""


EVERY_IMAGE = TrialOptions()
Which = tyro.conf.OmitArgPrefixes[WhichCheckpoint]
Trial = tyro.conf.OmitArgPrefixes[TrialOptions]


def show(examined: Any, files: list[Path]) -> None:
    """Print the measurements of each model, and the names of the files written."""
    from rich.console import Console

    from attnprobe.reports import print_report

    print_report(examined, Console())
    for path in files:
        print(path)
