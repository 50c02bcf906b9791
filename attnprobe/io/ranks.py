"""Work that several processes share without talking to each other.

Started by torchrun, which tells each its rank; or by hand, with RANK and WORLD_SIZE set. Work is cut into numbered
pieces that depend on neither. Each process takes its own run of them first and then whatever is left; a piece is
claimed by a lock on a file, which the kernel lets go when its holder dies. So no process waits for another, a dead one
costs the piece it was at, and the same command, with any number of processes, does what is missing. Where a file system
has no locks a piece may be done twice, which costs time and nothing else: of an object store a claim is a note that a
dead process leaves behind, so what nobody claimed comes first, and then, again, what is claimed and not done.
"""

import os
import random
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from attnprobe.core.errors import InUse
from attnprobe.io import fs
from attnprobe.io.lock import FileLock
from attnprobe.io.remote import RemotePath


@dataclass(frozen=True, slots=True)
class Rank:
    """Number of this process among those of its job.

    Attributes:
        local: its number on this machine, of `local_world`; the GPU it takes.
        job: the same for all processes of one command, another for each command; "" for a process alone.
    """

    rank: int = 0
    world: int = 1
    local: int = 0
    local_world: int = 1
    job: str = ""

    @classmethod
    def of_this_process(cls) -> "Rank":
        """The rank that torchrun's environment gives; alone without it."""
        world = int(os.environ.get("WORLD_SIZE", "1"))
        rank = int(os.environ.get("RANK", "0"))
        local = int(os.environ.get("LOCAL_RANK", rank))
        names = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
        job = "" if world == 1 else "/".join(os.environ.get(name, "-") for name in names)
        return cls(rank, world, local, int(os.environ.get("LOCAL_WORLD_SIZE", world)), job)

    @property
    def alone(self) -> bool:
        return self.world == 1

    def in_turn(self, n: int) -> list[int]:
        """Pieces 0 .. n-1 in the order this process looks at them: its own run first, then those after it, around."""
        first = n * self.rank // self.world
        return [*range(first, n), *range(first)]


ALONE = Rank()

_HELD: ContextVar[frozenset[Path]] = ContextVar("held", default=frozenset())


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep `folder`, which is made, for this command and all processes of its job; what it calls may ask again.

    Raises:
        InUse: another command works in it.
    """
    rank, key = Rank.of_this_process(), folder.resolve()
    if key in _HELD.get():
        yield
        return
    with fs.as_work_error(f"opening {folder}"):
        fs.make_folder(folder)
        lock = FileLock(folder / "run.lock", rank.job)
    token = _HELD.set(_HELD.get() | {key})
    try:
        yield
    finally:
        _HELD.reset(token)
        lock.release()


class _Note:
    """An object that says who is at a piece.

    Raises:
        FileExistsError: somebody is, or was and died.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        fs.write_file(path, f"pid {os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        fs.unlink(self.path)


class Claims:
    """Pieces of work that this process holds, each a locked file in `folder`, which is made.

    Attributes:
        advisory: claims are notes, which outlive their holder: a piece that is claimed may have nobody at it.
    """

    def __init__(self, folder: Path) -> None:
        fs.make_folder(folder)
        self.folder, self.advisory = folder, isinstance(folder, RemotePath)
        self._held: dict[str, FileLock | _Note] = {}

    def take(self, name: str) -> bool:
        """True if this process now holds the piece, because nobody else does."""
        path = self.folder / f"{name}.lock"
        with suppress(InUse, FileNotFoundError, FileExistsError):  # the folder goes when all is done
            self._held[name] = _Note(path) if self.advisory else FileLock(path)
            return True
        return False

    def release(self, name: str) -> None:
        """Let a piece go."""
        if name in self._held:
            self._held.pop(name).release()

    def remove(self) -> None:
        """Let all go, and the folder too, when there is nothing left to claim."""
        self.release_all()
        with suppress(OSError):
            for path in self.folder.glob("*.lock"):
                path.unlink(missing_ok=True)
            self.folder.rmdir()

    def release_all(self) -> None:
        """Let all go."""
        for name in list(self._held):
            self.release(name)


def shared_out(rank: Rank, n: int, claims: Claims, is_done: Callable[[int], bool]) -> Iterator[int]:
    """The pieces of 0 .. n-1 that this process is to do, one after the other; it ends when none is free.

    A piece is let go when it is done and another is asked for. Where claims outlive their holders, pieces that others
    claimed and that are not done come last, in an order of chance: of a dead process they are the only way to the end,
    and of a slow one a second try, as the backup tasks of Dean and Ghemawat 2004 ("MapReduce").
    """
    mine: list[int] = []
    for piece in rank.in_turn(n):
        for earlier in filter(is_done, mine):
            claims.release(f"{earlier:06d}")
        mine = [earlier for earlier in mine if not is_done(earlier)]
        if is_done(piece) or not claims.take(f"{piece:06d}"):
            continue
        if is_done(piece):  # by somebody who let go in between
            claims.release(f"{piece:06d}")
            continue
        mine.append(piece)
        yield piece
    if claims.advisory:
        for piece in random.sample(range(n), n):
            if piece not in mine and not is_done(piece):
                yield piece
