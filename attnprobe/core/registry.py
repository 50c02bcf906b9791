"""A table of named things that helps when a name is misspelt."""

from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from attnprobe.core.errors import InputError, did_you_mean

T = TypeVar("T")


class UnknownName(InputError, KeyError):
    """A name that is not in its table; the message suggests the nearest one."""

    def __str__(self) -> str:  # KeyError would show the message quoted
        return str(self.args[0])


class Registry(Mapping[str, T], Generic[T]):
    """A read-only mapping from name to entry, listed explicitly where it is used.

    `Registry("metric", layer_similarity, row_entropy)` takes the names from the entries, of functions too; `lister` is
    the command that lists them.
    """

    def __init__(self, kind: str, *things: T, lister: str = "") -> None:
        self.kind, self._lister = kind, lister
        self._things: dict[str, T] = {getattr(thing, "name", None) or thing.__name__: thing for thing in things}  # type: ignore[attr-defined]

    def __getitem__(self, name: str) -> T:
        try:
            return self._things[name]
        except KeyError:
            raise UnknownName(f"no {self.kind} named {name!r}.{did_you_mean(name, self, self._lister)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._things)

    def __len__(self) -> int:
        return len(self._things)

    def __repr__(self) -> str:
        return f"{self.kind}s: {', '.join(self)}"
