"""The log of a run: a row of summary.csv for every epoch, and warnings.json.

Warnings have a file of their own, because rows are numbers and are dropped when training resumes from an earlier epoch,
just when there is something to warn of. It is JSON, so that a report cannot be made to show another file in its place.
"""

import csv
import io
import json
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from attnprobe.core.errors import InputError
from attnprobe.io import fs
from attnprobe.io.run import MOST_BYTES, Run

LOG_FIELDS: tuple[str, ...] = (
    "epoch",
    "lr",
    "train_loss",
    "val_loss",
    "val_top1",
    "seconds",
    "images_per_second",  # while training
    "data_wait",  # fraction of the training time spent waiting for images
    "memory_gib",  # the most so far
)


class Waiting:
    """An iterator over `items` that measures the `seconds` spent waiting for them."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.items, self.seconds = iter(items), 0.0

    def __iter__(self) -> "Waiting":
        return self

    def __next__(self) -> Any:
        asked = time.monotonic()
        try:
            return next(self.items)
        finally:
            self.seconds += time.monotonic() - asked


def read_log(run: Run) -> list[dict[str, float]]:
    """The rows of summary.csv; none if there is no log yet.

    Raises:
        InputError: the file is damaged.
    """
    try:
        text = fs.read_regular(run.log, MOST_BYTES).decode()
        rows = [
            {name: float(value or "nan") for name, value in row.items()} for row in csv.DictReader(io.StringIO(text))
        ]
        return [{**row, "epoch": int(row["epoch"])} for row in rows]
    except FileNotFoundError:
        return []
    except (OSError, ValueError, TypeError, LookupError, OverflowError, csv.Error) as error:
        raise InputError(f"{run.log} is no log of training: {error}. Restore or remove it.") from error


def write_log(run: Run, rows: list[dict[str, float]]) -> None:
    """Replace summary.csv by these rows, atomically."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(LOG_FIELDS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with fs.as_work_error("writing summary.csv"):
        fs.write_file(run.log, text.getvalue().encode(), overwrite=True)


def write_warning(run: Run, text: str) -> None:
    """Add a warning to warnings.json, from which none is ever removed."""
    entries = []
    with suppress(OSError, ValueError, TypeError):  # no file yet, or a damaged one, which `Run.warnings` reports
        entries = list(fs.parse_json(fs.read_regular(run.notes, MOST_BYTES)))
    entries.append({"time": datetime.now(UTC).isoformat(timespec="seconds"), "text": text})
    with fs.as_work_error(f"writing {run.notes.name}"):
        fs.write_file(run.notes, json.dumps(entries, indent=1).encode(), overwrite=True)
