"""Files of an object store that are read as files of this machine: downloaded once into the cache."""

import hashlib
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from attnprobe.core.errors import InputError, WorkError
from attnprobe.io import fs
from attnprobe.io.remote import RemotePath, place


def local_copy(ref: Path | str, most: int | None = None) -> Path:
    """A file of an object store on this machine, or a folder without its subfolders; a path of this machine is itself.

    The copy lies in the cache under a hash of its URL, and of the names, sizes and checksums that the store tells, so
    that another state is another copy. It appears whole: a download that stopped leaves nothing.

    Args:
        ref: what the user typed.
        most: bytes it may have; half of the free space of the cache's disk if None.

    Raises:
        InputError: nothing has that name, or it is larger.
        WorkError: the network or the disk failed.
    """
    path = place(ref)
    if not isinstance(path, RemotePath):
        return path
    objects = {name: size for name, (size, _) in path.states().items() if "/" not in name}
    if not objects:
        raise InputError(f"no file at {path}, and no folder with files. Check its name.")
    shelf = fs.cache_folder() / "remote"
    home = shelf / hashlib.sha256(state_of(path).encode()).hexdigest()[:24]
    copy = home / path.name
    if copy.exists():
        return copy
    with fs.as_work_error(f"downloading {path} into {shelf}"):
        fs.make_folder(shelf)
        allowed, size = shutil.disk_usage(shelf).free // 2 if most is None else most, sum(objects.values())
        if size > allowed:
            raise InputError(f"{path} has {size} bytes, and {allowed} may be downloaded. Free space in {shelf}.")
        with tempfile.TemporaryDirectory(dir=shelf, prefix=fs.TEMPORARY) as temporary:
            whole = Path(temporary, "whole")
            _download(path, objects, whole / path.name)
            with suppress(OSError):  # another process was faster
                os.rename(whole, home)
    return copy


def _download(path: RemotePath, objects: dict[str, int], copy: Path) -> None:
    copy.parent.mkdir()
    if "" not in objects:
        copy.mkdir()
    for name, size in objects.items():
        target, source = (copy / name, path / name) if name else (copy, path)
        source.get_file(target)
        if (came := target.stat().st_size) != size:
            raise WorkError(f"{source} has {size} bytes and {came} came. Run the same command again.")


def state_of(path: Path) -> str:
    """A text that is another one when a file, or an object or its folder, is replaced; without reading it."""
    if isinstance(path, RemotePath):
        return f"{path} {sorted(path.states().items())}"
    status = path.stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
