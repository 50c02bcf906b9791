"""Resident memory of this process and its children (Linux), for the benchmarks in this folder."""

import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Self


def resident(field: str = "VmRSS", process: str = "self") -> int:
    """Bytes of a process in memory; `field` VmHWM for the most so far."""
    status = Path(f"/proc/{process}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) * 1024


def peak_growth(work: Callable[[], object]) -> int:
    """Bytes by which the peak resident size exceeds the resident size before."""
    Path("/proc/self/clear_refs").write_text("5")  # the kernel forgets the peak so far
    before = resident()
    work()
    return resident("VmHWM") - before


class _MallInfo2(ctypes.Structure):
    """The C library's struct mallinfo2: ten numbers, of which the ninth is fordblks."""

    _fields_ = (("numbers", ctypes.c_size_t * 10),)


def free_in_malloc() -> int:
    """Bytes that the C library's allocator (glibc 2.33 and later) keeps free for later requests."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _MallInfo2
    return mallinfo2().numbers[8]


class Watch(threading.Thread):
    """Calls `look` fifty times a second, while in use as a context manager."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._over = threading.Event()

    def look(self) -> None:
        raise NotImplementedError

    def run(self) -> None:
        while not self._over.wait(0.02):
            self.look()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()


class LargestChild(Watch):
    """Most resident bytes of any child of this process."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self._own = 0, _command("self")

    def look(self) -> None:
        for children in Path("/proc/self/task").glob("*/children"):
            with suppress(OSError, StopIteration):  # a thread or a child has just ended
                for child in children.read_text().split():
                    if _command(child) != self._own:  # else it is still a copy of this process
                        self.bytes = max(self.bytes, resident("VmHWM", child))


def _command(process: str) -> str:
    return Path(f"/proc/{process}/cmdline").read_text()
