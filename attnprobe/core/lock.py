"""How do two processes keep from writing the same output?"""

import errno
import os
import socket
from datetime import datetime
from pathlib import Path

from attnprobe.core.errors import Stopped

try:
    import fcntl
except ImportError:  # Windows: `fs.link` still refuses to overwrite; two writers would only waste work
    fcntl = None  # type: ignore[assignment]


class FileLock:
    """An exclusive lock on a file, held until `release` or the end of the process, kill -9 included.

    The file says who holds it. Where the file system has no locks (some network ones) nothing is held.

    Raises:
        Stopped: another process holds it; the message names it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        while True:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            try:
                self._acquire()
                if self._has_its_name():
                    break
            except BaseException:
                self.release()
                raise
            self.release()  # its holder removed it between our open and our lock: take the new one
        os.ftruncate(self._descriptor, 0)
        now = datetime.now().astimezone().isoformat(timespec="seconds")
        os.write(self._descriptor, f"pid {os.getpid()} on {socket.gethostname()} since {now}\n".encode())

    def _acquire(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(self._descriptor, 200).decode(errors="replace").strip() or "another process"
            raise Stopped(
                f"{self.path.parent} is in use by {holder}. Wait for it to end, or choose another output."
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP):
                raise

    def _has_its_name(self) -> bool:
        try:
            return os.path.samestat(os.fstat(self._descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Let go; calling it again does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
