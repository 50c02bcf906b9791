"""Locks on files, which keep two processes from writing the same output."""

import errno
import os
import socket
import stat
import time
from datetime import datetime
from pathlib import Path

from attnprobe.core.errors import InputError, InUse
from attnprobe.io.remote import RemotePath

try:
    import fcntl
except ImportError:  # Windows: `fs.link` still refuses to overwrite; two writers would only waste work
    fcntl = None  # type: ignore[assignment]

FLAGS = [getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK")]
"""A symbolic link would have us write into its target; opening a pipe or a device could wait for its other end."""

NO_FILE = {errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.EISDIR}
"""Why a link, a socket or a folder cannot be opened."""

HOLDER = b"pid "
"""Beginning of the file; one that begins otherwise is somebody's own."""


class FileLock:
    """A lock on a file, held until `release` or the end of the process, kill -9 included.

    Held by one process; with `job`, by all processes that name the same job. The file says who holds it. Where the file
    system has no locks (some network ones, object stores) nothing is held: what is committed there overwrites nothing.

    Raises:
        InUse: another process holds it; the message names it.
        InputError: what has the file's name is no lock of ours; it stays as it is.
    """

    def __init__(self, path: Path, job: str = "") -> None:
        self.path, self._job = path, job
        self._first, self._descriptor = True, -1
        if isinstance(path, RemotePath):
            path.prove_exclusive()
            return
        while True:
            self._descriptor = _open(path)
            try:
                self._acquire()
                if self._has_its_name():
                    if self._first:
                        self._say_who(job)
                    break
            except BaseException:
                self.release()
                raise
            self.release()  # its holder removed it between our open and our lock: take the new one

    def _say_who(self, job: str) -> None:
        """Write the holder's name over the last one's, and over nothing else."""
        before = os.read(self._descriptor, len(HOLDER))
        if not HOLDER.startswith(before):
            raise _not_ours(self.path)
        os.ftruncate(self._descriptor, 0)
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        job = f" job {job}" if job else ""
        holder = f"{os.getpid()} on {socket.gethostname()} since {now}{job}\n"
        os.write(self._descriptor, HOLDER + holder.encode())
        if job and fcntl is not None:
            self._flock(fcntl.LOCK_SH)  # now the others of the job may come

    def _acquire(self) -> None:
        if fcntl is None:
            return
        self._first = self._flock(fcntl.LOCK_EX | fcntl.LOCK_NB)
        if self._first:
            return
        for _ in range(100 if self._job else 0):  # the first of a job holds it alone for a moment
            if self._flock(fcntl.LOCK_SH | fcntl.LOCK_NB):
                break
            time.sleep(0.02)
        holder = os.read(self._descriptor, 400).decode(errors="replace").strip() or "another process"
        if not self._job or not holder.endswith(f" job {self._job}"):
            raise InUse(f"{self.path.parent} is in use by {holder}. Wait for it to end, or choose another output.")

    def _flock(self, how: int) -> bool:
        """True if the lock was free; a file system without locks has all of them free."""
        assert fcntl is not None
        try:
            fcntl.flock(self._descriptor, how)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise
        return True

    def _has_its_name(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let go; calling it again does nothing."""
        descriptor, self._descriptor = self._descriptor, -1  # first: a stop may come between, and release once more
        if descriptor >= 0:
            os.close(descriptor)


def _open(path: Path) -> int:
    """A descriptor of the regular file `path`, which is made."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | sum(FLAGS), 0o666)
    except OSError as error:
        if error.errno in NO_FILE:
            raise _not_ours(path) from None
        raise
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise _not_ours(path)


def _not_ours(path: Path) -> InputError:
    return InputError(
        f"{path} must be a file in which attnprobe says who works here, and is something else; remove it."
    )
