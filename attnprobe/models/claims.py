"""Plain options that a training script's arguments state beside a model's name: taken where no weight refutes them.

Some show in no weight, as the number of heads of a plain ViT; others may be another script's words for something else.
So each is tried on a model without memory, and counts only if as many of the file's weights fit as without it.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from attnprobe.models.build import require_stored, without_memory
from attnprobe.models.file_options import CLAIMED, is_option, shown_value
from attnprobe.models.read import Checkpoint
from attnprobe.models.unwrap import unwrap

UNSEEN = {"num_heads", "global_pool"}
"""Options that may show in no weight; of the others some weight must speak for them."""

TOGETHER = (("embed_dim", "num_heads"), *((name,) for name in CLAIMED))
"""Options that are tried at once, as a model may be built with both alone; then each that is still open."""


def claimed_options(checkpoint: Checkpoint, name: str, options: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The options that a file states of the named model and its weights do not refute, and a note on what was done.

    Args:
        options: those that are settled; what the file states of them is left out.

    Raises:
        CheckpointError: with them the model is far larger than the file's weights.
    """
    claims = {key: value for key, value in checkpoint.claimed.items() if key not in options}
    model = without_memory(name, options) if claims else None
    if model is None:
        return {}, []
    own = _own(model)
    claims |= {"patch_size": _plain(claims["patch_size"])} if "patch_size" in claims else {}
    claims = {key: value for key, value in claims.items() if not is_option(key, value) or value != own.get(key)}
    possible = {key: value for key, value in claims.items() if is_option(key, value)}
    if possible.get("depth") and sum(_list(possible["depth"])) > len(checkpoint.state):
        del possible["depth"]
    taken, least = {}, _misfits(checkpoint, model)
    for names in TOGETHER:
        more = {key: possible[key] for key in names if key in possible and key not in taken}
        if len(more) < len(names) or (tried := without_memory(name, {**options, **taken, **more})) is None:
            continue
        misfits = _misfits(checkpoint, tried)
        if misfits < least or (misfits == least and set(names) <= UNSEEN):
            taken, least = {**taken, **more}, misfits
    if taken:
        require_stored(checkpoint, name, {**options, **taken})
    left = {key: value for key, value in claims.items() if key not in taken and own.get(key) is not None}
    notes = [f"{_said(taken)} taken from its arguments"] if taken else []
    notes += [f"its arguments say {_said(left)}, which does not fit its weights; not used"] if left else []
    return taken, notes


def _said(options: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={shown_value(value)}" for key, value in options.items())


def _list(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _plain(value: Any) -> Any:
    """A list as a tuple, and a square as its side."""
    value = tuple(value) if isinstance(value, list) else value
    square = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], int) and value[0] == value[1]
    return value[0] if square else value


def _own(model: Any) -> dict[str, Any]:
    """The values that a model has of options that a file may state; None where it has no such thing."""
    blocks: Any = getattr(model, "blocks", None)
    plain = isinstance(blocks, nn.Sequential | nn.ModuleList) and len(blocks) and hasattr(blocks[0], "attn")
    attention = blocks[0].attn if plain else None
    pool = getattr(model, "global_pool", None)
    return {
        "embed_dim": getattr(model, "embed_dim", None),
        "num_heads": getattr(attention, "num_heads", None),
        "depth": len(blocks) if plain else None,
        "patch_size": _plain(getattr(getattr(model, "patch_embed", None), "patch_size", None)),
        "global_pool": pool if isinstance(pool, str) else getattr(pool, "pool_type", None),
    }


def _misfits(checkpoint: Checkpoint, model: nn.Module) -> int:
    """Number of a model's parameters and buffers that the file lacks, has of another shape, or has more than it."""
    wanted = model.state_dict()
    state, _ = unwrap(checkpoint.stored or checkpoint.state, wanted)
    fitting = sum(key in state and state[key].shape == value.shape for key, value in wanted.items())
    return len(wanted) + len(state) - 2 * fitting
