"""The files of NAME.parts, the folder in which a capture works.

plan.json          what is captured, written once, before the first shard
shards/s000000.h5  one slice of images each; the listing is the only record of what is done
quarantine/        damaged shards, for whoever wants to know why; never read, never deleted
certificate.json   what capture proved about the maps, when it is over
run.lock           held by the process that writes, or by all of one job
claims/            which process is at which shard
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import h5py

from attnprobe.core.errors import MapsFileError
from attnprobe.io import fs
from attnprobe.io.lock import FileLock
from attnprobe.io.remote import RemotePath
from attnprobe.store import structure
from attnprobe.store.opening import checking, open_hdf5
from attnprobe.store.plan import Pinned, canonical
from attnprobe.store.seal import Seal, read_checked, read_seal, verify

MOST_BYTES = 16 << 20
"""Maximum size of a certificate, which has some lines per layer."""


def parts_of(path: Path) -> Path:
    """NAME.parts of NAME.h5."""
    return path.with_suffix(".parts")


def shard_path(folder: Path, number: int) -> Path:
    """Path of shard `number`."""
    return folder / "shards" / f"s{number:06d}.h5"


def open_shard(folder: Path, number: int, plan_id: str) -> h5py.File:
    """One shard, after its hash and its structure were found right.

    Raises:
        MapsFileError: it is missing, damaged, or of another capture.
    """
    path = shard_path(folder, number)
    seal, data = read_checked(path)
    _require_own(path, seal, number, plan_id)
    file = open_hdf5(path, data)
    with checking(path, file):
        structure.check(file, path, seal)
    return file


def _require_own(path: Path, seal: Seal, number: int, plan_id: str) -> None:
    if (seal.part, seal.plan) != (number, plan_id):
        raise MapsFileError(f"{path} belongs to another capture. Restore the right one or capture again.")


def present(folder: Path, pinned: Pinned) -> list[int]:
    """Numbers of the shards that are there and say they belong here; their content is not read.

    Raises:
        MapsFileError: one is truncated, not ours, or of another capture.
    """
    numbers = named(folder, pinned)
    for number in numbers:
        path = shard_path(folder, number)
        _require_own(path, read_seal(path), number, pinned.plan_id)
    return numbers


def named(folder: Path, pinned: Pinned) -> list[int]:
    """Numbers of the shards whose names are in the folder, by one listing."""
    there = {path.name for path in (folder / "shards").glob("*.h5")}
    return [number for number in range(pinned.n_shards) if shard_path(folder, number).name in there]


def recover(folder: Path, pinned: Pinned) -> list[int]:
    """Numbers of the good shards, every byte of them checked; the others go to quarantine.

    Only for the holder of the lock; in an object store for whoever finds a shard damaged.
    """
    good = []
    for number in named(folder, pinned):
        path = shard_path(folder, number)
        try:
            _require_own(path, verify(path), number, pinned.plan_id)
            good.append(number)
        except MapsFileError:
            with suppress(FileNotFoundError):  # another process of the job was faster
                _quarantine(folder, path)
    return good


def _quarantine(folder: Path, path: Path) -> None:
    shelf = folder / "quarantine"
    fs.make_folder(shelf)
    name, n = shelf / path.name, 1
    while name.exists():
        name, n = shelf / f"{path.stem}-{n}.h5", n + 1
    fs.rename(path, name)
    fs.fsync_folder(shelf)
    fs.fsync_folder(path.parent)


def remove_temporaries(folder: Path) -> None:
    """Remove what a killed process left half-written. Only for the only holder of the lock."""
    for path in [*folder.glob(f"{fs.TEMPORARY}*"), *(folder / "shards").glob(f"{fs.TEMPORARY}*")]:
        fs.unlink(path)


def discard(folder: Path) -> None:
    """Remove the capture, plan.json last, so that whatever interrupts this can be told from other states.

    Only for the holder of the lock, whose file stays. Quarantine stays too. Processes of one job, which share the lock,
    may do it at once: what another has removed is gone.
    """
    remove_temporaries(folder)
    shards = folder / "shards"
    for path in sorted(shards.glob("*.h5")):
        fs.unlink(path)
    for path in (folder / "claims").glob("*.lock"):
        fs.unlink(path)
    with suppress(OSError):
        (folder / "claims").rmdir()
    fs.unlink(folder / "certificate.json")
    with suppress(FileNotFoundError):
        fs.fsync_folder(shards)
        with suppress(OSError):  # something of the user's is in it
            shards.rmdir()
    with suppress(FileNotFoundError):  # the whole folder: another process has come to the end
        fs.fsync_folder(folder)
        fs.unlink(folder / "plan.json")
        fs.fsync_folder(folder)
    if isinstance(folder, RemotePath):  # without locks a slow process may have put a shard again meanwhile
        for path in shards.glob("*.h5"):
            fs.unlink(path)


def leave(folder: Path, lock: FileLock) -> None:
    """Let go of the folder, and remove it if nothing was begun in it, or all is done."""
    if not (folder / "plan.json").exists():
        for remove in (lock.path.unlink, (folder / "shards").rmdir, folder.rmdir):
            with suppress(OSError):
                remove()
    lock.release()


def write_certificate(folder: Path, certificate: Mapping[str, Any]) -> None:
    """Keep what capture proved."""
    fs.write_file(folder / "certificate.json", canonical(dict(certificate)).encode(), overwrite=True)


def read_certificate(folder: Path) -> Any:
    """The certificate of the capture; empty while it is not over, None if it cannot be read."""
    try:
        return fs.parse_json(fs.read_regular(folder / "certificate.json", MOST_BYTES))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        return None
