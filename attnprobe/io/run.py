"""A run's directory, and which of its checkpoints are intact."""

import hashlib
import json
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from attnprobe.core.errors import CheckpointError, option
from attnprobe.core.text import visible
from attnprobe.io import fs
from attnprobe.io.remote import RemotePath

MANIFEST = "MANIFEST.json"
"""In every checkpoint folder: {file name: {"bytes": n, "sha256": hex}}."""

MOST_BYTES = 1 << 20
"""Largest size of a manifest, or of the notes of a run."""


@dataclass(frozen=True, slots=True)
class Run:
    """The directory `attnprobe train -o PATH` makes and the other commands add to."""

    path: Path

    @classmethod
    def of(cls, ref: Path | str) -> "Run":
        """The run that `ref` names, or the run it is a checkpoint of."""
        path = Path(ref)
        above = cls(path.parent.parent)
        return above if path.parent == above.checkpoints and above.config.exists() else cls(path)

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def log(self) -> Path:
        return self.path / "summary.csv"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def notes(self) -> Path:
        """The file of lasting warnings from training: JSON, [{"time", "text"}]."""
        return self.path / "warnings.json"

    @property
    def maps(self) -> Path:
        return self.path / "maps.h5"

    @property
    def probe(self) -> Path:
        """The folder of the probe's records from training."""
        return self.path / "probe"

    def checkpoint(self, epoch: int) -> Path:
        """The folder of the checkpoint after `epoch` epochs."""
        return self.checkpoints / f"epoch-{epoch:04d}"

    def epochs(self) -> list[int]:
        """Epochs with a checkpoint, damaged or not, in order."""
        numbers = (path.name.removeprefix("epoch-") for path in self.checkpoints.glob("epoch-*"))
        return sorted(int(n) for n in numbers if re.fullmatch(r"\d{4}|[1-9]\d{4,}", n))

    def latest_checkpoint(self) -> Path | None:
        """The newest intact checkpoint; None if there is none."""
        return self._newest()[0]

    def _newest(self) -> tuple[Path | None, list[Path]]:
        """The newest intact checkpoint, and the damaged ones after it, newest first."""
        damaged = []
        for folder in map(self.checkpoint, reversed(self.epochs())):
            if not damaged_files(folder):
                return folder, damaged
            damaged.append(folder)
        return None, damaged

    def choose_checkpoint(self, epoch: int | None = None, *, allow_older: bool = False) -> Path:
        """The folder of the newest checkpoint, or of the one after `epoch` epochs.

        Args:
            allow_older: where the newest is damaged, warn and take the newest intact one.

        Raises:
            CheckpointError: there is none, it is damaged, or a newer one is: numbers would be of other weights than
                the run ended with.
        """
        epochs = self.epochs()
        if not epochs:
            raise CheckpointError(f"{self.path} has no checkpoint yet; train it for an epoch, or give another one.")
        if epoch is not None:
            if epoch not in epochs:
                have = ", ".join(map(str, epochs))
                raise CheckpointError(f"{self.path} has no checkpoint of epoch {epoch}; it has those of {have}.")
            if damaged_files(folder := self.checkpoint(epoch)):
                raise CheckpointError(f"in {self.checkpoints}, {damage([folder])}; choose another one.")
            return folder
        intact, newer = self._newest()
        if intact is None:
            raise CheckpointError(
                f"{self.path} has no intact checkpoint: {damage(newer)}. Restore one, or train into a new folder."
            )
        if newer and not allow_older:
            older = int(intact.name.rpartition("-")[2])
            raise CheckpointError(
                f"in {self.checkpoints}, {damage(newer)}. The newest intact one is {intact}: name it, "
                f"{option('checkpoint', f'{older} or --allow-older', python='that folder, in place of the run')}."
            )
        if newer:
            warnings.warn(f"in {self.checkpoints}, {damage(newer)}; {intact.name} is used.", stacklevel=2)
        return intact

    def warnings(self) -> tuple[str, ...]:
        """The texts in `notes`, each with its time; one that says so where the file cannot be understood."""
        if not os.path.lexists(self.notes):
            return ()
        try:
            entries = fs.parse_json(fs.read_regular(self.notes, MOST_BYTES, follow=False))
            return tuple(visible(f"{entry['time']} {entry['text']}") for entry in entries)
        except (OSError, ValueError, TypeError, KeyError):
            return (f"{self.notes.name} is damaged: what went wrong while this run trained is not known",)


def damage(folders: Iterable[Path]) -> str:
    """A phrase on damaged checkpoints, newest first."""
    phrases = [f"{folder.name} is damaged ({damaged_files(folder)[0]} is not what was written)" for folder in folders]
    return " and ".join([*phrases[:2], *([f"{len(phrases) - 2} older ones"] if len(phrases) > 2 else [])])


def run_of(file: Path) -> Path | None:
    """The folder of the run that a maps file lies in; None if it lies in none, or in an object store."""
    if isinstance(file, RemotePath):
        return None
    folder = file.parent
    return folder if Run(folder).config.is_file() and Run(folder).checkpoints.is_dir() else None


def maps_of(ref: Path) -> Path:
    """The maps file of a run; anything else, as a maps file or a folder of shards, is itself."""
    maps = Run(ref).maps
    return maps if ref.is_dir() and maps.exists() else ref


def untrained_maps(path: Path) -> Path:
    """The file of a maps file's baseline."""
    return path.with_suffix(".untrained.h5")


def name_of(maps: Path) -> str:
    """Name of a maps file in tables and legends: its run's, or its own."""
    return (maps.parent.name if maps.name == "maps.h5" else maps.stem) or maps.stem


def manifest_of(files: dict[str, bytes]) -> bytes:
    """The manifest for these file contents, as JSON."""
    entries = {n: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for n, data in files.items()}
    return json.dumps(entries, indent=1, sort_keys=True).encode()


def damaged_files(folder: Path) -> list[str]:
    """Names of files that are missing or differ from the folder's manifest."""
    try:
        entries = fs.parse_json(fs.read_regular(folder / MANIFEST, MOST_BYTES))
        bad = [name for name, entry in entries.items() if not _intact(folder, name, entry)]
        return bad if entries else [MANIFEST]  # one that names no file proves none
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return [MANIFEST]


def _intact(folder: Path, name: str, entry: dict[str, object]) -> bool:
    """True if a file of the folder itself, and none outside it, has the size and hash of its entry."""
    path = folder / name
    if Path(name).name != name or not path.is_file():
        return False
    with fs.open_regular(path) as file:
        if os.fstat(file.fileno()).st_size != entry["bytes"]:
            return False
        return hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]
