"""Places of the results of the products of one module: side by side in one tensor, in some order, or added up.

Question: of several products, which rows or heads of the layer's map does each one hold? Choice: the model says so
itself, when it joins their results: by their order in a call of `cat` or `stack`, or by the index at which each is
written into a tensor. Results that are added up are no parts of one map.
"""

import math
import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from attnprobe.capturing.softmax_trails import memory_of, tensors, unseen

JOINS = {"cat", "concat", "concatenate", "stack", "hstack", "vstack", "dstack", "column_stack"}

SCALES = re.compile(r"^_*(i?true_?div|i?mul|div|divide|true_divide|multiply|rmul)_*$")
"""Functions that divide or multiply entry by entry."""

AXES = {"hstack": 1, "vstack": 0, "dstack": 2, "column_stack": 1}
"""The axis along which functions that are given none join."""

CUTS = {"view", "reshape", "unflatten", "_unsafe_view"}
DEALS = {"chunk", "split", "tensor_split", "unsafe_chunk", "unsafe_split", "split_with_sizes"}
TURNS = {"transpose", "permute", "movedim", "moveaxis", "swapaxes", "swapdims", "__get__"}
KEEPS_ROWS = re.compile(
    r"^_*(i?r?add|i?sub|i?r?mul|i?true_?div|div|dropout|contiguous|clone|to|float|double|half|bfloat16|type|type_as|"
    r"detach)_*$"
)
"""Functions that cut the rows of a result into several axes, deal them out, move their axis, or leave it as it is."""


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a result in a larger one.

    Attributes:
        whole: what it is a part of, equal for the parts of one tensor.
        at: its positions there, along the only axis that it does not fill; its number in the list for joined ones.
        shape, axis: its own, and the axis along which it was joined or written; None if that was made for it.
    """

    whole: tuple[object, ...]
    at: tuple[int, ...]
    shape: tuple[int, ...] = ()
    axis: int | None = None

    def is_along(self, n_rows: int) -> bool:
        """True if results of so many rows were joined along their rows, as seen by their shape."""
        if self.axis is None or self.shape[self.axis] != n_rows:
            return False
        return self.shape[1:].count(n_rows) == (self.axis % len(self.shape) > 0)


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
        self._rows: WeakIdKeyDictionary = WeakIdKeyDictionary()  # tensor -> number of its product, axis of its rows
        self.cuts: dict[int, frozenset[int]] = {}  # into how many neighbouring rows those of a product are cut

    def begin(self, result: Tensor, number: int, n_rows: int = 0) -> None:
        """`result` is that of the product of this number; where its rows may be heads, too, there are `n_rows`."""
        self._made[result] = frozenset([number])
        if n_rows and tuple(result.shape[1:]).count(n_rows) == 1:  # the first axis is the images'
            self._rows[result] = (number, tuple(result.shape).index(n_rows, 1))

    def follow(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        """A function of this name was called; tensors that hold joined results count as made of none of them."""
        found = [tensor for tensor in tensors((args, kwargs)) if tensor in self._made]
        if not found:
            return
        if self._rows:
            self._follow_rows(name, args, result)
        numbers = frozenset().union(*(self._made[tensor] for tensor in found))
        if name in JOINS:
            axis = None if name == "stack" else AXES.get(name, kwargs.get("dim", kwargs.get("axis", (*args, 0, 0)[1])))
            self._join(args[0] if args else kwargs["tensors"], axis)
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

    def _follow_rows(self, name: str, args: Any, result: Any) -> None:
        """The rows of a result are cut into several axes, or moved with their axis."""
        given = args[0] if args and isinstance(args[0], Tensor) and args[0] in self._rows else None
        made = list(tensors(result))
        if given is None or not made:
            return
        number, axis = self._rows[given]
        n_rows, behind = given.shape[axis], math.prod(given.shape[axis + 1 :])
        if name in DEALS:
            sizes = {part.shape[axis] for part in made if part.ndim == given.ndim} - {n_rows}
            if len(sizes) == 1:
                self.cuts.setdefault(number, frozenset(sizes))
        elif name in CUTS:
            inner = [math.prod(made[0].shape[i:]) for i in range(made[0].ndim)]
            sizes = {n // behind for n in inner if n % behind == 0 and 1 < n // behind < n_rows}
            if sizes:
                self.cuts.setdefault(number, frozenset(sizes))
            elif made[0].shape[: axis + 1] == given.shape[: axis + 1]:
                self._rows[made[0]] = (number, axis)
        elif name in TURNS and tuple(made[0].shape[1:]).count(n_rows) == 1:
            self._rows[made[0]] = (number, tuple(made[0].shape).index(n_rows, 1))
        elif KEEPS_ROWS.match(name) and made[0].shape == given.shape:
            self._rows[made[0]] = (number, axis)

    def _join(self, parts: Any, axis: int | None) -> None:
        """Results are joined in the order of a list; one that comes in several pieces has no place."""
        self._n_joins += 1
        seen: list[int] = []
        shapes: dict[int, tuple[int, ...]] = {}
        for part in tensors(parts):
            numbers = self._made.get(part) or frozenset()
            if len(numbers) == 1 and seen[-1:] != [*numbers]:
                seen += numbers
                shapes |= dict.fromkeys(numbers, tuple(part.shape))
        for at, number in enumerate(seen):
            if seen.count(number) == 1:
                self.places.setdefault(number, Place(("join", self._n_joins), (at,), shapes[number], axis))

    def _write(self, whole: Tensor, index: Any, numbers: frozenset[int]) -> None:
        """A result is written into a tensor; it has a place if it fills all of its axes but one."""
        with unseen():
            lines = [_line(whole, index, axis) for axis in range(whole.ndim)]
            key = (memory_of(whole), whole.shape, whole.stride())
        parts = [axis for axis, line in enumerate(lines) if line != tuple(range(whole.shape[axis]))]
        for number in numbers:
            if len(numbers) == 1 and len(parts) == 1 and (line := lines[parts[0]]) is not None:
                shape = tuple(len(line) if axis == parts[0] else n for axis, n in enumerate(whole.shape))
                self.places.setdefault(number, Place((*key, parts[0]), line, shape, parts[0]))


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
