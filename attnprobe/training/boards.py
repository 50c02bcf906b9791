"""Optional logging of each epoch to TensorBoard or Weights & Biases."""

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attnprobe.core.errors import InputError
from attnprobe.io import fs
from attnprobe.io.run import Run
from attnprobe.training.config import TrainConfig

Row = Mapping[str, float]


@contextmanager
def boards(config: TrainConfig, run: Run, done: int) -> Iterator[Callable[[Row], None]]:
    """A function that writes a row of the log to every board in use; a resumed run continues after `done` epochs.

    Raises:
        InputError: the package of a board in use is not installed.
    """
    with ExitStack() as stack:
        writers: list[Callable[[Row], None]] = []
        if config.log_tensorboard:
            writers.append(_tensorboard(run, done, stack))
        if config.log_wandb:
            writers.append(_wandb(config, run, stack))

        def write(row: Row) -> None:
            for writer in writers:
                writer(row)

        yield write


def summary_writer(option: str, folder: Path, **options: Any) -> Any:
    """TensorBoard's writer into a folder.

    Raises:
        InputError: it is not installed; the message names the option that asked for it.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError(f"{option} needs TensorBoard: pip install tensorboard.") from None
    return SummaryWriter(str(folder), **options)


def _tensorboard(run: Run, done: int, stack: ExitStack) -> Callable[[Row], None]:
    writer = summary_writer("log_tensorboard", run.path / "tensorboard", purge_step=done + 1)
    stack.callback(writer.close)

    def write(row: Row) -> None:
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name, value, int(row["epoch"]))
        writer.flush()

    return write


def _wandb(config: TrainConfig, run: Run, stack: ExitStack) -> Callable[[Row], None]:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise InputError("log_wandb needs Weights & Biases: pip install wandb.") from error
    known: Any = wandb
    name = run.path / "wandb-id"
    if not name.exists():
        fs.write_file(name, uuid.uuid4().hex.encode())
    board = known.init(
        project=config.wandb_project or "attnprobe",
        name=run.path.name,
        id=name.read_text(),
        resume="allow",
        dir=str(run.path),
        config=asdict(config),
    )
    stack.callback(board.finish)
    return lambda row: board.log(dict(row), step=int(row["epoch"]))
