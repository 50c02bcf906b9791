"""Every folder that a power cut may leave behind, from the file operations of a piece of work.

Made for the weakest disk that POSIX allows: a file that was not fsynced keeps any beginning of what was written, and
each name that was given, moved or removed since its folder was last fsynced may be there or not, one by one. A journal
allows fewer states.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

from attnprobe.io import fs

MOST_STATES = 24
"""States tried of one moment; of more a random choice, always with that in which most is lost and that without loss."""


State = dict[str, bytes | None]
"""Content of every file by its path in the folder; None for a folder."""


@dataclass(frozen=True)
class Cut:
    """A folder after a power cut.

    Attributes:
        promised: content of each file that had been said to be safe.
    """

    state: State
    promised: dict[str, bytes]

    @property
    def lost(self) -> list[str]:
        """Promised files that are not there, or with another content."""
        return sorted(name for name, content in self.promised.items() if self.state.get(name) != content)

    def lay_out(self, folder: Path) -> Path:
        """Make the folder as it was left."""
        folder.mkdir(parents=True)
        for name, content in sorted(self.state.items()):  # a folder before what is in it
            if content is None:
                (folder / name).mkdir()
            else:
                (folder / name).write_bytes(content)
        return folder


def power_cuts(root: Path, work: Callable[[], object], seed: int = 0) -> list[Cut]:
    """The folders that a power cut may leave before any operation of `work` on the disk, and after the last.

    Args:
        root: the folder in which `work` writes; what is there before is on the disk.
    """
    disk, chance = _Disk(root), random.Random(seed)
    cuts: dict[object, Cut] = {}
    promised: dict[str, bytes] = {}
    perform, write = fs._perform, fs.write

    def cut() -> None:
        disk.look()
        for state in disk.states(chance):
            cuts.setdefault((frozenset(state.items()), frozenset(promised)), Cut(state, dict(promised)))

    def performed(operation: str, path: Path, call: Callable[[], Any]) -> Any:
        cut()
        result = perform(operation, path, call)
        if operation in ("fsync", "fsync_folder"):
            disk.synced(path)
        return result

    def written(descriptor: int, data: Any, path: Path) -> None:
        cut()
        write(descriptor, data, path)

    def promising(call: Callable[..., Any]) -> Callable[..., Any]:
        def made(temporary: Path, final: Path, **options: Any) -> None:
            call(temporary, final, **options)
            files = [final] if final.is_file() else [path for path in final.rglob("*") if path.is_file()]
            promised.update({str(path.relative_to(root)): path.read_bytes() for path in files})

        return made

    with mock.patch.multiple(
        fs,
        _perform=performed,
        write=written,
        publish=promising(fs.publish),
        commit_folder=promising(fs.commit_folder),
    ):
        work()
        cut()
    return list(cuts.values())


@dataclass
class _Disk:
    """What of a folder is on the disk, followed through the operations of `attnprobe.io.fs`.

    A file or folder is known by a number of its own, since a system gives that of a removed one to the next.

    Attributes:
        contents: of each file, what its last fsync left.
        names: of each folder, the names in it at its last fsync.
    """

    root: Path
    contents: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, dict[str, int]] = field(default_factory=dict)
    _numbers: dict[tuple[int, int], int] = field(default_factory=dict)
    _made: int = 0
    _files: dict[int, bytes] = field(default_factory=dict)
    _folders: dict[int, dict[str, int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.look()
        self.contents = dict(self._files)
        self.names = {number: dict(names) for number, names in self._folders.items()}

    def look(self) -> None:
        """Read the folder as it is now, fsynced or not."""
        present = [self.root, *sorted(self.root.rglob("*"))]
        keys = {path: (path.stat().st_dev, path.stat().st_ino) for path in present}
        self._numbers = {key: number for key, number in self._numbers.items() if key in set(keys.values())}
        for key in keys.values():
            if key not in self._numbers:
                self._numbers[key] = self._made = self._made + 1
        number = {path: self._numbers[key] for path, key in keys.items()}
        self._files = {number[path]: path.read_bytes() for path in present if path.is_file()}
        self._folders = {number[path]: {} for path in present if path.is_dir()}
        for path in present[1:]:
            self._folders[number[path.parent]][path.name] = number[path]

    def synced(self, path: Path) -> None:
        """Note that a file or folder was fsynced."""
        self.look()
        number = self._numbers[path.stat().st_dev, path.stat().st_ino]
        if path.is_dir():
            self.names[number] = dict(self._folders[number])
        else:
            self.contents[number] = self._files[number]

    def states(self, chance: random.Random) -> Iterator[State]:
        """What may be found after a power cut now."""
        doubtful: list[list[tuple[tuple[int, str], Any]]] = []
        for folder in self._folders.keys() | self.names.keys():
            old, new = self.names.get(folder, {}), self._folders.get(folder, {})
            for name in sorted(old.keys() | new.keys()):
                if old.get(name) != new.get(name):
                    doubtful.append([((folder, name), old.get(name)), ((folder, name), new.get(name))])
        for file, content in self._files.items():
            kept = self.contents.get(file, b"")
            if kept != content:
                doubtful.append([((file, ""), part) for part in (kept, content[: len(content) // 2], content)])
        for choice in _some(doubtful, chance):
            yield self._state(dict(choice))

    def _state(self, chosen: dict[tuple[int, str], Any]) -> State:
        found: State = {}

        def enter(folder: int, path: str) -> None:
            old, new = self.names.get(folder, {}), self._folders.get(folder, {})
            for name in old.keys() | new.keys():
                number = chosen.get((folder, name), old.get(name, new.get(name)))
                if number is None:
                    continue
                inside = f"{path}{name}"
                if number in self._folders or number in self.names:
                    found[inside] = None
                    enter(number, f"{inside}/")
                else:
                    found[inside] = chosen.get((number, ""), self.contents.get(number, self._files.get(number, b"")))

        enter(self._numbers[self.root.stat().st_dev, self.root.stat().st_ino], "")
        return found


def _some(doubtful: list[list[Any]], chance: random.Random) -> Iterator[tuple[Any, ...]]:
    if math.prod(map(len, doubtful)) <= MOST_STATES:
        yield from itertools.product(*doubtful)
        return
    yield tuple(options[0] for options in doubtful)
    yield tuple(options[-1] for options in doubtful)
    for _ in range(MOST_STATES - 2):
        yield tuple(chance.choice(options) for options in doubtful)
