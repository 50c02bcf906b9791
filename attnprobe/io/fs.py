"""Files that appear complete or not at all, even on a full disk or after kill -9.

Every file operation that matters goes through this module, so that tests can make the n-th one fail:
`ATTNPROBE_FAULT=<operation>:<n>:<kill|ENOSPC|EIO|EINTR|short>`, where the operation is one of
`OPERATIONS` or "any". `kill` strikes just before the operation, in `write` after half of the bytes.

The commit: a temporary file in the same file system, space reserved, written, fsynced; then one atomic
step (`link`, which cannot overwrite, or `rename`, which replaces) gives it its name; then the folder is
fsynced. A failed fsync is never retried: the kernel may have dropped the pages and report success.

A `RemotePath` lies in an object store, where one conditional put is the whole commit; see `remote`.
"""

import errno
import json
import os
import secrets
import shutil
import signal
import socket
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from attnprobe.core.errors import InputError, WorkError
from attnprobe.io.remote import RemotePath, require_local

OPERATIONS = ("make_folder", "create", "reserve", "write", "fsync", "link", "rename", "unlink", "fsync_folder")
TEMPORARY = ".tmp-"
"""Beginning of the name of every unfinished file."""

matched = 0
"""Operations so far that the fault in force names; the fault strikes when it reaches n."""


def _strikes(operation: str) -> str:
    """The kind of fault that hits this very operation, "" for none."""
    global matched
    fault = os.environ.get("ATTNPROBE_FAULT")
    if not fault:
        return ""
    name, number, kind = fault.split(":")
    if name not in (operation, "any"):
        return ""
    matched += 1
    return kind if matched == int(number) else ""


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fail(kind: str, path: Path) -> None:
    code = getattr(errno, kind)
    raise OSError(code, os.strerror(code), str(path))


def _perform(operation: str, path: Path, call: Callable[[], Any]) -> Any:
    while True:
        try:
            kind = _strikes(operation)
            if kind == "kill":
                _kill()
            if kind not in ("", "short"):
                _fail(kind, path)
            return call()
        except InterruptedError:
            continue


OF_FILES = (".h5", ".html", ".json", ".csv", ".md", ".tex", ".pdf", ".png", ".svg")
"""Endings that nobody gives a folder."""


def check_folder(path: Path) -> None:
    """Raises InputError where a folder for several files is to be, and the name is a file's."""
    if not path.is_dir() and (path.suffix.lower() in OF_FILES or path.exists()):
        raise InputError(f"{path} names a file, and several are written: name a folder, such as {path.stem or 'out'}.")


def make_folder(path: Path) -> None:
    """Create the folder if it is not there; its name is durable when this returns."""
    require_local(path)
    if not isinstance(path, RemotePath) and not path.is_dir():
        _perform("make_folder", path, lambda: path.mkdir(parents=True, exist_ok=True))
        fsync_folder(path.parent)


def create(path: Path) -> int:
    """A descriptor of a new file, for reading and writing; FileExistsError if the name is taken."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    return _perform("create", path, lambda: os.open(path, flags, 0o666))


def reserve(descriptor: int, size: int, path: Path) -> None:
    """Take `size` bytes from the disk now, so that a full disk shows before any byte is written."""

    def allocate() -> None:
        try:
            os.posix_fallocate(descriptor, 0, size)
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):  # not offered by this file system
                raise

    if size and hasattr(os, "posix_fallocate"):
        _perform("reserve", path, allocate)


def write(descriptor: int, data: Any, path: Path) -> None:
    """All of `data` (anything with a buffer) at the descriptor's position."""
    left = memoryview(data).cast("B")
    while left:
        kind = _strikes("write")
        if kind in ("kill", "short"):
            done = os.write(descriptor, left[: max(1, len(left) // 2)])
            if kind == "kill":
                _kill()
        elif kind == "EINTR":
            continue
        elif kind:
            _fail(kind, path)
        else:
            done = os.write(descriptor, left)
        left = left[done:]


def fsync(descriptor: int, path: Path) -> None:
    def flush() -> None:
        if sys.platform == "darwin":  # fsync there stops at the drive's cache
            import fcntl

            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
        else:
            os.fsync(descriptor)

    _perform("fsync", path, flush)


def fsync_folder(path: Path) -> None:
    """Make the names in a folder durable."""
    if os.name == "nt" or isinstance(path, RemotePath):  # folders cannot be opened there
        return

    def flush() -> None:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    _perform("fsync_folder", path, flush)


def link(source: Path, name: Path) -> None:
    """Give a file a second name; FileExistsError if the name is taken."""

    def call() -> None:
        try:
            os.link(source, name)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
            if name.exists():  # no hard links on this file system (exFAT, SMB): the caller's lock must do
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(name)) from error
            os.rename(source, name)

    _perform("link", name, call)


def rename(source: Path, name: Path) -> None:
    """Move a file or folder; a file that has the name already is replaced."""
    if isinstance(source, RemotePath):
        source.rename(name)
    else:
        _perform("rename", name, lambda: os.replace(source, name))


def unlink(path: Path) -> None:
    """Remove a file; no error if it is gone."""
    _perform("unlink", path, lambda: path.unlink(missing_ok=True))


def temporary_in(folder: Path) -> Path:
    """A fresh name for an unfinished file, which tells whose it is; that of an object lies on this machine."""
    here = Path(tempfile.gettempdir()) if isinstance(folder, RemotePath) else folder
    return here / f"{TEMPORARY}{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"


def cache_folder() -> Path:
    """The folder of what was downloaded, and of what would be computed again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "attnprobe"


def free_bytes(folder: Path) -> int:
    """Free space of the disk on which the temporary files of `folder` lie."""
    return shutil.disk_usage(tempfile.gettempdir() if isinstance(folder, RemotePath) else folder).free


def publish(temporary: Path, final: Path, *, overwrite: bool = False) -> None:
    """Give a finished, fsynced file its name: the commit point.

    Raises:
        FileExistsError: the name is taken and `overwrite` is False.
    """
    if isinstance(final, RemotePath):
        final.put_file(temporary, overwrite=overwrite)
        unlink(temporary)
    elif overwrite:
        rename(temporary, final)
    else:
        link(temporary, final)
        unlink(temporary)
    fsync_folder(final.parent)


def open_regular(path: Path, most: int | None = None, *, follow: bool = True) -> BufferedReader:
    """A regular file, open for reading; a pipe or a device is neither waited for nor read.

    Args:
        most: bytes that it may have; as many as this machine's memory if None.
        follow: whether the last part of the path may be a symbolic link.

    Raises:
        OSError: missing, not a regular file, a link where none is followed, or larger.
    """
    if isinstance(path, RemotePath):
        return _small_enough(path, path.open_ranges(), most)
    names = ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY", *(() if follow else ("O_NOFOLLOW",)))
    flags = os.O_RDONLY | sum(getattr(os, name, 0) for name in names)
    # The file owns its descriptor from the start: a stop that strikes here must not close it a second time.
    file = open(path, "rb", opener=lambda name, _: os.open(name, flags))  # noqa: SIM115
    try:
        status, most = os.fstat(file.fileno()), _memory() if most is None else most
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if status.st_size > most:
            raise OSError(errno.EFBIG, f"of {status.st_size} bytes, at most {most} are read", str(path))
    except BaseException:
        file.close()
        raise
    return file


def _memory() -> int:
    """Bytes of this machine's memory, which a file that is read whole must fit into."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # not offered by this system
        return 1 << 40


def beside(path: Path) -> list[str]:
    """Names of what lies in a path's folder; none where it cannot be read."""
    try:
        return sorted(os.listdir(path.parent))
    except OSError:
        return []


def read_regular(path: Path, most: int | None = None, *, follow: bool = True) -> bytes:
    """The content of a regular file; arguments and errors as for `open_regular`."""
    with open_regular(path, most, follow=follow) as file:
        return file.read()


def size_of(file: BinaryIO) -> int:
    """Bytes of an open file, which is at its beginning afterwards."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    return size


def _small_enough(path: Path, file: BufferedReader, most: int | None) -> BufferedReader:
    size, most = size_of(file), _memory() if most is None else most
    if size > most:
        file.close()
        raise OSError(errno.EFBIG, f"of {size} bytes, at most {most} are read", str(path))
    return file


def parse_json(text: bytes | str) -> Any:
    """A JSON document.

    Raises:
        ValueError: not JSON, not UTF-8, or nested deeper than Python's stack.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def write_file(path: Path, data: Any, *, overwrite: bool = False) -> None:
    """Create a file that is there with all of `data` or not at all; durable when this returns.

    Raises:
        FileExistsError: the name is taken and `overwrite` is False.
        OSError: the disk is full or fails; nothing is left behind.
    """
    if isinstance(path, RemotePath):
        path.put(data, overwrite=overwrite)
        return
    temporary = temporary_in(path.parent)
    try:
        descriptor = create(temporary)
        try:
            reserve(descriptor, memoryview(data).nbytes, temporary)  # first: a full disk shows before any work
            write(descriptor, data, temporary)
            fsync(descriptor, temporary)
        finally:
            os.close(descriptor)
        # Only synced bytes get the name, or a power cut could leave a name without them. `publish` syncs the folder
        # last: before that the name itself could be lost.
        publish(temporary, path, overwrite=overwrite)
    except BaseException:
        with suppress(OSError):
            unlink(temporary)
        raise


def commit_folder(temporary: Path, final: Path) -> None:
    """Give a folder of finished files its name; all of it is durable when this returns.

    Raises:
        OSError: `final` is there already and not empty, or the disk fails.
    """
    for path in sorted(temporary.rglob("*"), reverse=True):  # files before the folder they are in
        if path.is_dir():
            fsync_folder(path)
        else:
            descriptor = os.open(path, os.O_RDWR)
            try:
                fsync(descriptor, path)
            finally:
                os.close(descriptor)
    fsync_folder(temporary)
    rename(temporary, final)
    fsync_folder(final.parent)


@contextmanager
def as_work_error(work: str) -> Iterator[None]:
    """Say in one line what the disk refused: `work` is what was going on."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise WorkError(
                f"no space left on the disk while {work}. Free some, then run the same command again."
            ) from error
        raise WorkError(
            f"{work} failed: {error.strerror or error} ({error.filename or 'disk'}). Check the disk, then run the same "
            "command again."
        ) from error
