"""Slices that are folded into one another, eight neighbours at a time and then eight of these, into a few files.

Slice k of n is leaf k of a tree in which every node has eight children. A node is their merge, from the first to the
last, so its bits do not depend on who merges, or when: sums of floats are always added in one order. A node is
committed before its children are removed, so at any time each finished slice is in exactly one of the nodes that
matter, those without an ancestor; of n finished slices at most 7 log8(n) + 7 files are left. With two children to a
node there would be fewer files, and everything would be read and written twice instead of 1.14 times.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from attnprobe.io import fs

FAN = 8
"""Children of a node."""

Node = tuple[int, int]
"""Level and place: slices place * FAN**level and on, FAN**level of them; a slice itself has level 0."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The tree over `n` slices; `merge` makes the bytes of a node from those of its children."""

    folder: Path
    n: int
    merge: Callable[[Iterable[bytes]], bytes]

    def path(self, node: Node) -> Path:
        """The file of a node."""
        level, place = node
        first = f"s{place * FAN**level:06d}"
        return self.folder / (f"{first}.npz" if level == 0 else f"{first}+{FAN**level}.npz")

    def slices(self, node: Node) -> range:
        """Numbers of the slices of a node."""
        level, place = node
        return range(place * FAN**level, (place + 1) * FAN**level)

    def has(self, number: int) -> bool:
        """True if a slice is finished, by itself or in an ancestor; looked for upwards, as slices move."""
        return any(self.path((level, number // FAN**level)).exists() for level in range(self._levels))

    def roots(self) -> list[Node]:
        """The fewest nodes that together are all slices, in order."""
        found, start = [], 0
        for level in reversed(range(self._levels)):
            while start + FAN**level <= self.n:
                found.append((level, start // FAN**level))
                start += FAN**level
        return found

    def fold(self, number: int) -> None:
        """Merge a finished slice with its neighbours, if all are finished, and so on upwards."""
        level, place = 1, number // FAN
        while (place + 1) * FAN**level <= self.n and self._merged((level, place)):
            level, place = level + 1, place // FAN

    def complete(self) -> list[Path]:
        """The files of `roots`, made of what processes that were stopped did not come to merge."""
        for node in self.roots():
            self._make(node)
        return [self.path(node) for node in self.roots()]

    @property
    def _levels(self) -> int:
        """Levels of which there may be nodes."""
        return next(level for level in range(1, 64) if FAN**level > self.n)

    def _children(self, node: Node) -> list[Node]:
        level, place = node
        return [(level - 1, FAN * place + i) for i in range(FAN)]

    def _make(self, node: Node) -> None:
        """Make a node of slices that are all finished, and remove what was merged into it."""
        if not self.path(node).exists():
            for child in self._children(node):
                self._make(child)
            if not self._merged(node):
                raise FileNotFoundError(f"{self.path(node)} has lost a part")
        for below in self._below(node):  # left by a process that was stopped when it had merged them
            fs.unlink(self.path(below))

    def _merged(self, node: Node) -> bool:
        """True if a node is there, merged by this process or another; False if a child is not."""
        children = [self.path(child) for child in self._children(node)]
        if not all(child.exists() for child in children):
            return self.path(node).exists()
        try:
            data = self.merge(map(fs.read_regular, children))
        except FileNotFoundError:  # another process was faster
            return self.path(node).exists()
        with suppress(FileExistsError):
            fs.write_file(self.path(node), data)
        for child in children:
            fs.unlink(child)
        return True

    def _below(self, node: Node) -> Iterator[Node]:
        """Descendants of a node that are still there."""
        for child in self._children(node) if node[0] else ():
            if self.path(child).exists():
                yield child
            yield from self._below(child)
