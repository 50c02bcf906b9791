"""Nouns of removal: the parts of a model that can be removed, what is removed, and what is left.

A model with code of its own says all of it by an object of the protocol `Family`, its attribute `family`.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from torch import nn

from attnprobe.core.errors import InputError


@dataclass(frozen=True, slots=True)
class Part:
    """A block of a model: one residual branch of attention, and an MLP.

    Attributes:
        block: the module; without it, its argument number `stream` (from 0) is passed on.
        attention: the module whose output is added to the tokens, perhaps scaled.
        projection: the layer whose input are the outputs of the heads, side by side; None without attention.
        heads: their number.
        refusal: the reason why no head of this block can be removed; "" if one can.
        sequence: number of the list of blocks it is in, such as the stage.
        turn: what differs between blocks that alternate, such as the shift of windows; equal for those that do not.
    """

    block: nn.Module
    attention: nn.Module
    projection: nn.Module | None
    heads: int
    refusal: str = ""
    stream: int = 0
    sequence: int = 0
    turn: Any = None


@dataclass(frozen=True, slots=True)
class Removal:
    """Parts that a model is to lose, counted from 1 in the whole model.

    Attributes:
        blocks: whole blocks.
        attention: blocks that keep their MLP and lose their attention branch.
        heads: {block: heads}.
    """

    blocks: Collection[int] = ()
    attention: Collection[int] = ()
    heads: Mapping[int, Sequence[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unique = {block: tuple(dict.fromkeys(heads)) for block, heads in self.heads.items() if heads}
        for name, value in (("blocks", frozenset(self.blocks)), ("attention", frozenset(self.attention)),
                            ("heads", unique)):  # fmt: skip
            object.__setattr__(self, name, value)

    def check(self, parts: Sequence[Part]) -> None:
        """Raise InputError if a block or head is not there, none would be left, or heads cannot be removed."""
        n = len(parts)
        for block in sorted({*self.blocks, *self.attention, *self.heads}):
            if not 1 <= block <= n:
                raise InputError(f"there is no block {block}; the model has blocks 1 to {n}.")
        if len(self.blocks) >= n:
            raise InputError(f"no block of {n} would be left; leave one.")
        for block in sorted(self.attention):
            if not parts[block - 1].heads:
                raise InputError(f"block {block} has no attention left to remove.")
        for block, lost in self.heads.items():
            part = parts[block - 1]
            if part.refusal:
                raise InputError(
                    f"block {block}: {part.refusal}, so none can be removed without changing the others; drop blocks, "
                    "or see what verify-drops says of the head."
                )
            if missing := [head for head in lost if not 1 <= head <= part.heads]:
                raise InputError(f"block {block} has no head {missing[0]}; it has heads 1 to {part.heads}.")
            if len(lost) == part.heads:
                raise InputError(f"all heads of block {block} would go; leave one, or drop the block.")


@dataclass(frozen=True, slots=True)
class Smaller:
    """A model that has lost parts, and how it is stored.

    Attributes:
        module: the model, rebuilt as its files are opened.
        name, options: what `build_model` takes, for a model it can build.
        files: file name -> bytes of a folder that opens as this model; made when it is called.
    """

    module: nn.Module
    name: str
    options: Mapping[str, Any]
    files: Callable[[], Mapping[str, bytes]]


@runtime_checkable
class Family(Protocol):
    """Description of models of one kind to take apart: the attribute `family` of a model with code of its own."""

    def parts(self, model: Any) -> Sequence[Part]:
        """The blocks, in the order they are computed."""
        ...

    def smaller(self, model: Any, removal: Removal, name: str, options: Mapping[str, Any]) -> Smaller:
        """A copy of the model without these parts, whose logits are those of the model with them silenced.

        Args:
            name, options: what the model was built from.

        Raises:
            InputError: the model cannot be written without them.
        """
        ...


def units(parts: Sequence[Part], blocks: Sequence[int], *, every: bool = False) -> list[tuple[int, ...]]:
    """Blocks (from 1) in groups that can be dropped alone: pairs of neighbours where blocks alternate, else singles.

    Args:
        every: leave a block without a partner out.

    Raises:
        InputError: a block is not there, or its partner is missing.
    """
    if missing := [block for block in blocks if not 1 <= block <= len(parts)]:
        raise InputError(f"there is no block {missing[0]}; the model has blocks 1 to {len(parts)}.")
    turns: dict[int, set[Any]] = {}
    for part in parts:
        turns.setdefault(part.sequence, set()).add(part.turn)
    found, waiting = [], sorted(set(blocks))
    while waiting:
        first, *waiting = waiting
        part = parts[first - 1]
        if len(turns[part.sequence]) == 1:
            found.append((first,))
        elif waiting[:1] == [first + 1] and parts[first].sequence == part.sequence:
            found.append((first, waiting.pop(0)))
        elif not every:
            raise InputError(f"block {first} alternates with its neighbours; drop two of them together, such as "
                             f"{first} and {first + 1} of one stage.")  # fmt: skip
    return found
