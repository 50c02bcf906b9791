"""The options that say which checkpoint of a run is meant, the same for every command that runs a model."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WhichCheckpoint:
    """Which checkpoint of a run."""

    checkpoint: int | None = None
    """of a run, the checkpoint after so many epochs; the newest if not given."""
    allow_older: bool = False
    """of a run whose newest checkpoint is damaged, use the newest intact one instead of refusing."""

    def of(self, model: str) -> str:
        """The model as it was named, or the folder of the checkpoint that these options choose.

        Raises:
            CheckpointError: as `Run.choose_checkpoint`.
            InputError: an epoch of what is no run.
        """
        from attnprobe.core.errors import InputError
        from attnprobe.core.run import Run

        if self == NEWEST:
            return model
        run = Run.of(model)
        if not run.checkpoints.is_dir():
            raise InputError(f"--checkpoint and --allow-older are for runs of attnprobe train; {model} is none.")
        return str(run.choose_checkpoint(self.checkpoint, allow_older=self.allow_older))


NEWEST = WhichCheckpoint()
