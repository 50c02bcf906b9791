"""Slices that are folded into one another: pairs of neighbours, then pairs of these, in a folder of a few files.

Slice k of n is the leaf k of a binary tree. A node is the merge of its two children, always the left one first, so its
bits do not depend on who merges, or when: sums of floats are added in one order. A node is committed before its
children are removed, so at any time each finished slice is in exactly one of the nodes that matter, those without an
ancestor, and of n finished slices as many are left as n has ones in binary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from attnprobe.io import fs

Node = tuple[int, int]
"""Level and place: slices place * 2**level .. (place + 1) * 2**level - 1; slices themselves have level 0."""


@dataclass(frozen=True, slots=True)
class Tree:
    """The tree over `n` slices; `merge` makes the bytes of a node from those of its children."""

    folder: Path
    n: int
    merge: Callable[[Sequence[bytes]], bytes]

    def path(self, node: Node) -> Path:
        """The file of a node."""
        level, place = node
        first = f"s{place << level:06d}"
        return self.folder / (f"{first}.npz" if level == 0 else f"{first}+{1 << level}.npz")

    def has(self, number: int) -> bool:
        """True if a slice is finished, by itself or in an ancestor; upwards, as slices move."""
        return any(self.path((level, number >> level)).exists() for level in range(self.n.bit_length()))

    def roots(self) -> list[Node]:
        """The fewest nodes that together are all slices, in order."""
        found, start = [], 0
        for level in reversed(range(self.n.bit_length())):
            if self.n >> level & 1:
                found.append((level, start >> level))
                start += 1 << level
        return found

    def fold(self, number: int) -> None:
        """Merge a finished slice with its neighbour, if that is finished, and so on upwards."""
        node = (0, number)
        while ((node[1] | 1) + 1) << node[0] <= self.n:
            pair = [(node[0], node[1] & ~1), (node[0], node[1] | 1)]
            if not all(self.path(child).exists() for child in pair) or not self._merged(pair):
                return
            node = node[0] + 1, node[1] >> 1

    def complete(self) -> list[Path]:
        """The files of `roots`, made of what processes that were stopped did not come to merge."""
        for node in self.roots():
            self._make(node)
        return [self.path(node) for node in self.roots()]

    def _make(self, node: Node) -> None:
        level, place = node
        if not self.path(node).exists():
            pair = [(level - 1, 2 * place), (level - 1, 2 * place + 1)]
            for child in pair:
                self._make(child)
            if not self._merged(pair) and not self.path(node).exists():
                raise FileNotFoundError(f"{self.path(node)} has lost a part")
        for below in self._below(node):  # left by a process that was stopped after it had merged them
            fs.unlink(self.path(below))

    def _merged(self, pair: list[Node]) -> bool:
        """Merge two nodes; False if another process was faster."""
        (level, place), _ = pair
        try:
            data = self.merge([fs.read_regular(self.path(child)) for child in pair])
        except FileNotFoundError:
            return False
        with suppress(FileExistsError):
            fs.write_file(self.path((level + 1, place >> 1)), data)
        for child in pair:
            fs.unlink(self.path(child))
        return True

    def _below(self, node: Node) -> Iterator[Node]:
        """Descendants of a node that are still there."""
        level, place = node
        nodes = ((k, p) for k in range(level) for p in range(place << level - k, (place + 1) << level - k))
        yield from (below for below in nodes if self.path(below).exists())
