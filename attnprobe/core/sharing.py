"""Work that several metrics need of the same tensor, done once while they are measured together."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")

_KEPT: ContextVar[dict[Any, tuple[tuple[Tensor, ...], Any]] | None] = ContextVar("_KEPT", default=None)


@contextmanager
def sharing() -> Iterator[None]:
    """Within it every function that is `shared` runs once for the same tensor and settings, whoever calls it.

    The tensors must not be changed in between. What was computed is kept to the end, and so are the tensors: such a
    function returns sums rather than copies, and what it is given is the maps at hand or is itself shared.
    """
    token = _KEPT.set({})
    try:
        yield
    finally:
        _KEPT.reset(token)


def shared(function: Callable[Concatenate[Tensor, P], R]) -> Callable[Concatenate[Tensor, P], R]:
    """Decorator of a pure function of a tensor, then of hashable settings and tensors, that `sharing` runs once."""

    @wraps(function)
    def once(tensor: Tensor, *args: P.args, **kwargs: P.kwargs) -> R:
        kept = _KEPT.get()
        if kept is None:
            return function(tensor, *args, **kwargs)
        given = (tensor, *args, *kwargs.values())
        key = (function, *kwargs, *map(_place, given))
        if key not in kept:  # tensors are kept beside the result: freed, others could come to their place in memory
            kept[key] = tuple(x for x in given if isinstance(x, Tensor)), function(tensor, *args, **kwargs)
        return kept[key][1]

    return once


def _place(given: Any) -> Any:
    """What tells one argument from another: of a tensor its place in memory, the settings themselves."""
    if not isinstance(given, Tensor):
        return given
    return given.data_ptr(), given.shape, given.stride(), given.dtype, given.device
