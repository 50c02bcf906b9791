"""What is in a run's directory, and which of its checkpoints can be trusted?"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

MANIFEST = "MANIFEST.json"
"""In every checkpoint folder: {file name: {"bytes": n, "sha256": hex}}."""


@dataclass(frozen=True, slots=True)
class Run:
    """The directory `attnprobe train -o PATH` makes and the other commands add to."""

    path: Path

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
    def maps(self) -> Path:
        return self.path / "maps.h5"

    @property
    def probe(self) -> Path:
        """The folder of what the probe saw while it trained."""
        return self.path / "probe"

    def checkpoint(self, epoch: int) -> Path:
        """The folder of the checkpoint after `epoch` epochs."""
        return self.checkpoints / f"epoch-{epoch:04d}"

    def epochs(self) -> list[int]:
        """Epochs with a committed checkpoint, in order."""
        return sorted(
            int(p.name.removeprefix("epoch-")) for p in self.checkpoints.glob("epoch-[0-9]*") if (p / MANIFEST).exists()
        )

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint whose files are what was written; None if there is none."""
        for epoch in reversed(self.epochs()):
            folder = self.checkpoint(epoch)
            if not damaged_files(folder):
                return folder
        return None


def run_of(file: Path) -> Path | None:
    """The folder of the run that a maps file lies in; None if it lies in none."""
    folder = file.parent
    return folder if Run(folder).config.is_file() or Run(folder).checkpoints.is_dir() else None


def manifest_of(files: dict[str, bytes]) -> bytes:
    """The manifest for these file contents, as JSON."""
    entries = {n: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for n, data in files.items()}
    return json.dumps(entries, indent=1, sort_keys=True).encode()


def damaged_files(folder: Path) -> list[str]:
    """Names of files that are missing or differ from the folder's manifest."""
    try:
        entries = json.loads((folder / MANIFEST).read_text())
        return [name for name, entry in entries.items() if not _intact(folder / name, entry)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return [MANIFEST]


def _intact(path: Path, entry: dict[str, object]) -> bool:
    if not path.is_file() or path.stat().st_size != entry["bytes"]:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == entry["sha256"]
