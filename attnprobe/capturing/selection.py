"""The layers, heads and queries that are kept of what a model computes."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from attnprobe.core.errors import InputError
from attnprobe.core.grid import TokenGrid
from attnprobe.core.text import numbers

SLICE = re.compile(r"^(-?\d*):(-?\d*)(?::(\d+))?$")


@dataclass(frozen=True, slots=True)
class Selection:
    """Layers and heads by number from 1, as reports count them; None for all.

    Attributes:
        layers: of the whole network, in the order they run.
        heads: of each layer; a layer that has none of them is an error.
        queries: "all", "cls" (the class token; of class attention its one query), or a slice of the queries of a layer
            as in Python, counted from 0.

    Raises:
        InputError: a text that is none of these.
    """

    layers: frozenset[int] | None = None
    heads: tuple[int, ...] | None = None
    queries: str = "all"

    def __post_init__(self) -> None:
        if self.queries not in ("all", "cls") and not SLICE.match(self.queries):
            raise InputError(f"queries={self.queries!r} must be all, cls, or a slice such as 0:1 or 1::4.")

    @classmethod
    def parse(cls, layers: str | None = None, heads: str | None = None, queries: str = "all") -> "Selection":
        """From what one types: `1-4,12`."""
        chosen = None if layers is None else frozenset(numbers("layers", layers))
        return cls(chosen, None if heads is None else tuple(numbers("heads", heads)), queries)

    @property
    def everything(self) -> bool:
        return self == Selection()

    def wants(self, layer: int) -> bool:
        """True if the layer of this number, from 1, is kept."""
        return self.layers is None or layer in self.layers

    def heads_of(self, n_heads: int) -> tuple[int, ...] | None:
        """Positions from 0 of the heads kept of a layer; None for all.

        Raises:
            InputError: the layer has none of them.
        """
        if self.heads is None:
            return None
        chosen = tuple(number - 1 for number in self.heads if number <= n_heads)
        if not chosen:
            raise InputError(f"heads {', '.join(map(str, self.heads))} were chosen, and a layer has {n_heads}.")
        return chosen

    def queries_of(self, n_queries: int, kind: str, grid: TokenGrid | None) -> slice | None:
        """Queries of a layer that are kept; None for all.

        Raises:
            InputError: there are none of them.
        """
        if self.queries == "all" or (self.queries == "cls" and kind in ("class", "pool") and n_queries == 1):
            return None
        if self.queries == "cls":
            at = None if grid is None or kind != "self" else grid.token("cls")
            if at is None:
                raise InputError(
                    f"queries='cls' was chosen, and {kind!r} maps have no class token among their queries."
                )
            return slice(at, at + 1)
        found = SLICE.match(self.queries)
        assert found is not None, "checked when it was made"
        chosen = slice(*(int(part) if part else None for part in found.groups()))
        if not range(n_queries)[chosen]:
            raise InputError(f"queries={self.queries!r} keeps none of the {n_queries} queries of a layer.")
        return chosen


def positions(chosen: slice | Sequence[int] | None, n: int) -> tuple[int, ...] | None:
    """A choice among n as positions from 0; None for all."""
    if chosen is None:
        return None
    return tuple(range(n)[chosen]) if isinstance(chosen, slice) else tuple(chosen)
