"""A run's probe history on disk: probe.h5 for programs, probe.csv and alarms.txt for people.

probe.h5 holds everything and is what is read back: /epoch, /training_seconds, /probe_seconds [epoch],
/blocks/<metric> [epoch, block], /matrices/<metric> [epoch, block, block], /uniform/<metric> [block], and as
attributes settings, image_ids and alarms (JSON). It is small and written whole, so a kill leaves the one before; its
first 512 bytes hold the SHA-256 of the rest, because libhdf5 may crash on damage that nobody noticed before it.
"""

import csv
import hashlib
import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from attnprobe.core.errors import MapsFileError
from attnprobe.core.history import Alarm, History
from attnprobe.core.text import cell
from attnprobe.io import fs
from attnprobe.store.opening import open_hdf5
from attnprobe.store.seal import BLOCK

MAGIC = b"ATHIST\x01 "
MOST_BYTES = 64 << 20
"""A history has some kilobytes an epoch; its arrays are read whole."""
COLUMNS = ("epoch", "metric", "block", "value")


def write_history(folder: Path, history: History) -> None:
    """Replace the three files in `folder`, each in one step, probe.h5 first.

    Raises:
        WorkError: the disk is full or fails.
    """
    alarms = "".join(f"epoch {alarm.epoch}: {alarm.text}\n" for alarm in history.alarms)
    with fs.as_work_error(f"writing the probe's history into {folder}"):
        fs.make_folder(folder)
        fs.write_file(folder / "probe.h5", _to_hdf5(history), overwrite=True)
        fs.write_file(folder / "probe.csv", _to_csv(history).encode(), overwrite=True)
        fs.write_file(folder / "alarms.txt", alarms.encode(), overwrite=True)


def read_history(folder: Path) -> History | None:
    """The history that `write_history` wrote; None if there is none.

    Raises:
        MapsFileError: the file is damaged or not ours.
    """
    path = Path(folder) / "probe.h5"
    try:
        data = fs.read_regular(path, MOST_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise MapsFileError(f"{path} cannot be read: {error.strerror or error}.") from None
    if data[:BLOCK] != _seal(data[BLOCK:]):
        raise MapsFileError(f"{path} is damaged or no history of attnprobe. Restore it, or remove it to start anew.")
    try:
        with open_hdf5(path, io.BytesIO(data), allowed=MOST_BYTES) as file:
            return _from_hdf5(file)
    except (KeyError, ValueError, TypeError, OSError, RuntimeError, AttributeError, IndexError) as error:
        if isinstance(error, MapsFileError):
            raise
        raise MapsFileError(f"{path} is no history of attnprobe ({error}). Remove it to start anew.") from error


def _seal(body: Any) -> bytes:
    return (MAGIC + hashlib.sha256(body).hexdigest().encode()).ljust(BLOCK, b"\0")


def _to_hdf5(history: History) -> memoryview:
    buffer = io.BytesIO()
    with h5py.File(buffer, "x", userblock_size=BLOCK, libver=("v110", "v110")) as file:
        file.attrs["settings"] = json.dumps(history.settings)
        file.attrs["image_ids"] = json.dumps(history.image_ids)
        file.attrs["alarms"] = json.dumps([asdict(alarm) for alarm in history.alarms])
        file["epoch"] = history.epochs
        for name in ("training_seconds", "probe_seconds"):
            file[name] = getattr(history, name)
        for part in ("blocks", "matrices", "uniform"):
            group = file.create_group(part)
            for metric, values in getattr(history, part).items():
                group[metric.replace("/", "|")] = values  # a slash, as in "stage/name", would open a group
    data = buffer.getbuffer()
    data[:BLOCK] = _seal(data[BLOCK:])
    return data


def _from_hdf5(file: Any) -> History:
    parts = {
        part: {name.replace("|", "/"): _numbers(values) for name, values in file[part].items()}
        for part in ("blocks", "matrices", "uniform")
    }
    return History(
        epochs=_numbers(file["epoch"]),
        **parts,
        settings=fs.parse_json(file.attrs["settings"]),
        image_ids=tuple(fs.parse_json(file.attrs["image_ids"])),
        training_seconds=_numbers(file["training_seconds"]),
        probe_seconds=_numbers(file["probe_seconds"]),
        alarms=tuple(Alarm(**alarm) for alarm in fs.parse_json(file.attrs["alarms"])),
    )


def _numbers(dataset: Any) -> np.ndarray:
    values = np.asarray(dataset[()])
    if values.dtype.kind not in "iuf":
        raise TypeError(f"{dataset.name} holds {values.dtype}, not numbers")
    return values


def _to_csv(history: History) -> str:
    """A row per epoch, metric and block, from 1; without block what concerns the epoch as a whole."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row, epoch in enumerate(history.epochs.tolist()):
        for metric, values in history.blocks.items():
            writer.writerows((epoch, cell(metric), block, value) for block, value in enumerate(values[row].tolist(), 1))
        for name in ("training_seconds", "probe_seconds"):
            writer.writerow((epoch, name, "", float(getattr(history, name)[row])))
    return text.getvalue()
