"""The state dict in what a file holds, where no script's keys lead to it."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from attnprobe.core.errors import CheckpointError
from attnprobe.models.unwrap import ANCHOR, WRAPPERS, flatten, unwrap

MOST_PARTS = 16
"""Longest list that is searched for a state dict."""


def only_dict(held: Any, named: str) -> dict[str, Any]:
    """The one dictionary with weights in a list or tuple.

    Args:
        named: the file's name in the message.

    Raises:
        CheckpointError: there is none, or more than one, or something else is held.
    """
    parts = list(held) if isinstance(held, list | tuple) else []
    if 0 < len(parts) <= MOST_PARTS:
        with_weights = {id(part): part for part in parts if isinstance(part, Mapping) and flatten(part, named)}
        if len(with_weights) == 1:
            return dict(next(iter(with_weights.values())))
    listed = f" of {len(parts)}: {', '.join(map(_kind, parts[:5]))}{' ...' if len(parts) > 5 else ''}" if parts else ""
    what = f"a {_kind(held)}{listed}" if listed else _kind(held)
    raise CheckpointError(
        f"{named} holds {what}, where one dictionary of weights is expected; save model.state_dict()."
    )


def only_model(loaded: Mapping[Any, Any], named: str) -> dict[str, Tensor] | None:
    """The weights of the one vision transformer among a dictionary's entries; None if no entry is one by its name.

    Raises:
        CheckpointError: several are, of which no name says that it is the one to open.
    """
    entries = {key: value for key, value in loaded.items() if isinstance(key, str) and isinstance(value, Mapping)}
    if len(entries) > MOST_PARTS or any(key in WRAPPERS for key in entries):
        return None
    states = {key: flatten(value, named) for key, value in entries.items() if not key.startswith("optim")}
    models = {key: state for key, state in states.items() if ANCHOR in unwrap(state)[0]}
    if len(models) > 1:
        names = ", ".join(f"{key!r:.60}" for key in models)
        first = f"{next(iter(models))!r:.60}"
        raise CheckpointError(
            f"{named} holds several models: {names}. Save the one to open alone, as in "
            f"torch.save(torch.load({named!r})[{first}], 'one.pth')."
        )
    return next(iter(models.values()), None)


def _kind(value: Any) -> str:
    """A kind of value in a message."""
    return f"dict of {len(value)}" if isinstance(value, Mapping) else type(value).__name__
