"""Places of the results of the products of one module: side by side in one tensor, in some order, or added up.

Question: of several products, which rows or heads of the layer's map does each one hold? Choice: the model says so
itself, when it joins their results: by their order in a call of `cat` or `stack`, or by the index at which each is
written into a tensor. Results that are added up are no parts of one map.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from attnprobe.capturing.softmax_trails import tensors, unseen

JOINS = {"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack"}

SCALES = re.compile(r"^_*(i?true_?div|i?mul|div|divide|true_divide|multiply|rmul)_*$")
"""Functions that divide or multiply entry by entry."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a result in a larger one.

    Attributes:
        whole: what it is a part of, equal for the parts of one tensor.
        at: its positions there, along the only axis that it does not fill; its number in the list for joined ones.
    """

    whole: tuple[object, ...]
    at: tuple[int, ...]


class Pieces:
    """Tensors made of the results of products, and the place of each of these."""

    def __init__(self) -> None:
        self._made: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> numbers of the products in it
        self.clear()

    def __bool__(self) -> bool:
        return len(self._made) > 0

    def __contains__(self, tensor: Tensor) -> bool:
        return tensor in self._made

    def clear(self) -> None:
        """Forget all of them."""
        self._made.clear()
        self._n_joins = 0
        self.places: dict[int, Place] = {}
        self.added: set[int] = set()
        self.scaled: set[int] = set()  # those divided, or multiplied, by a number for each row

    def begin(self, result: Tensor, number: int) -> None:
        """`result` is that of the product of this number."""
        self._made[result] = frozenset([number])

    def follow(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """A function of this name was called; tensors that hold joined results count as made of none of them."""
        found = [tensor for tensor in tensors((args, kwargs)) if tensor in self._made]
        if not found:
            return
        numbers = frozenset().union(*(self._made[tensor] for tensor in found))
        if name in JOINS:
            self._join(args[0] if args else kwargs["tensors"])
            numbers = frozenset()
        elif name == "__setitem__":
            if isinstance(args[2], Tensor):
                self._write(args[0], args[1], self._made.get(args[2]) or frozenset())
            self._made[args[0]] = frozenset()
        elif len(numbers) > 1:
            self.added |= numbers
        elif SCALES.match(name) and any(_is_of_rows(tensor, result) for tensor in tensors(args)):
            self.scaled |= numbers
        self._made.update((made, numbers) for made in tensors(result))

    def _join(self, parts: Any) -> None:
        """Results are joined in the order of a list; one that comes in several pieces has no place."""
        self._n_joins += 1
        seen: list[int] = []
        for part in tensors(parts):
            numbers = self._made.get(part) or frozenset()
            if len(numbers) == 1 and seen[-1:] != [*numbers]:
                seen += numbers
        for at, number in enumerate(seen):
            if seen.count(number) == 1:
                self.places.setdefault(number, Place(("join", self._n_joins), (at,)))

    def _write(self, whole: Tensor, index: Any, numbers: frozenset[int]) -> None:
        """A result is written into a tensor; it has a place if it fills all of its axes but one."""
        with unseen():
            lines = [_line(whole, index, axis) for axis in range(whole.ndim)]
            key = (whole.untyped_storage().data_ptr(), whole.shape, whole.stride())
        parts = [axis for axis, line in enumerate(lines) if line != tuple(range(whole.shape[axis]))]
        for number in numbers:
            if len(numbers) == 1 and len(parts) == 1 and (line := lines[parts[0]]) is not None:
                self.places.setdefault(number, Place((*key, parts[0]), line))


def _is_of_rows(tensor: Tensor, result: Any) -> bool:
    """True if a tensor has one number for each row of a result; what is no tensor, or one number, has no rows."""
    if not isinstance(result, Tensor) or not result.ndim:
        return False
    return tensor.is_floating_point() and tensor.numel() * result.shape[-1] == result.numel() > tensor.numel()


def _line(whole: Tensor, index: Any, axis: int) -> tuple[int, ...] | None:
    """Positions along an axis that an index reaches, in its order; None where they depend on other axes."""
    size = whole.shape[axis]
    shape = [-1 if i == axis else 1 for i in range(whole.ndim)]
    positions = torch.arange(size, device=whole.device).view(shape).expand(whole.shape)[index]
    for i in range(positions.ndim):
        line = positions[tuple(slice(None) if j == i else 0 for j in range(positions.ndim))]
        if len(line) and bool((positions == line.view([-1 if j == i else 1 for j in range(positions.ndim)])).all()):
            return tuple(dict.fromkeys(line.tolist()))
    return (int(positions),) if positions.ndim == 0 else None
