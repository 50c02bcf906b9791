"""The weights of one model among those of a training script: prefixes of wrappers, and parts that are no model."""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor

from attnprobe.core.errors import CheckpointError

WRAPPERS = (
    *("module", "_orig_mod", "model", "net", "network", "backbone", "encoder", "vit", "trunk", "visual"),
    *("model_ema", "ema_model", "ema", "teacher", "momentum_teacher", "target_encoder"),
    *("base_encoder", "online_encoder", "encoder_q", "student", "online_network"),
    *("momentum_encoder", "encoder_k", "target_network"),
)
"""First words of parameter names that wrap a model, in the order of preference where a file holds several models.

Averaged weights (of an EMA or a teacher) are the published ones and come first; then what was trained; momentum copies.
"""

OF_PYTORCH = {"_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"}
"""Words that PyTorch puts into the names of a module that is sharded, recomputed or compiled, wherever it is."""

ANCHOR = "blocks.0.norm1.weight"
"""A parameter that every vision transformer of timm's kind has."""

OF_THE_MODEL = re.compile(
    r"(patch_embed\w*|blocks|stages|layers|norm|norm_pre|fc_norm|attn_pool|pos_embed|cls_token|reg_token|dist_token|rope)$"
)
"""First words of names that change what a vision transformer computes, and may not be left out."""


MOST_ENTRIES = 200_000
"""Maximum number of entries of nested dictionaries, counted as often as they are reached: one dictionary that a small
file names many times would otherwise be walked without end."""

LONGEST_NAME = 1000
"""Maximum number of characters of a parameter's dotted name."""


def flatten(tree: Mapping[Any, Any], named: str, depth: int = 3) -> dict[str, Tensor]:
    """The tensors of nested dictionaries by their dotted names; keys that are not strings (an optimizer's) are left.

    Args:
        named: the file's name in the message.

    Raises:
        CheckpointError: more entries than any model has, or a name longer than any parameter's.
    """
    flat = {}
    for count, (name, value) in enumerate(_entries("", tree, depth)):
        if count == MOST_ENTRIES or len(name) > LONGEST_NAME:
            raise CheckpointError(
                f"{named}: its nested dictionaries have more than {MOST_ENTRIES} entries, or names of more than "
                f"{LONGEST_NAME} characters; refused. Save model.state_dict() alone."
            )
        if name and isinstance(value, Tensor):
            flat[name] = value
    return flat


def _entries(prefix: str, tree: Mapping[Any, Any], depth: int) -> Iterator[tuple[str, Any]]:
    """Dotted name and value of all entries of nested dictionaries; the name is "" where the key is not a string."""
    for key, value in tree.items():
        name = prefix + key if isinstance(key, str) else ""
        yield name, value
        if name and isinstance(value, Mapping) and depth and not key.startswith("optim"):
            yield from _entries(f"{name}.", value, depth - 1)


def without_wrappers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, by names without the words that PyTorch's wrappers of single modules put into them.

    Names are kept as they are where two would become one.
    """
    plain = {".".join(word for word in name.split(".") if word not in OF_PYTORCH): name for name in state}
    return {name: state[stored] for name, stored in plain.items()} if len(plain) == len(state) else dict(state)


def prefixes(names: Iterable[str]) -> list[str]:
    """All chains of `WRAPPERS` that names begin with, such as "" and "module.backbone."; the preferred first."""
    chains = {""}
    for name in names:
        words, chain = name.split("."), ""
        for word in words[:-1]:
            if word not in WRAPPERS:
                break
            chain += f"{word}."
            chains.add(chain)
    return sorted(chains, key=lambda chain: (max(map(WRAPPERS.index, chain.split(".")[:-1]), default=-1), len(chain)))


def unwrap(state: Mapping[str, Tensor], wanted: Iterable[str] = (ANCHOR,)) -> tuple[dict[str, Tensor], list[str]]:
    """The weights of one model, its wrappers' prefixes removed, and a note if there were several to choose from.

    The prefix under which most of the `wanted` names are is the model's; of equal ones the first in the order of
    `WRAPPERS`. Where none are, the prefixes that all names share are removed. Names outside of the prefix are kept as
    they are, unless they belong to another model.
    """
    wanted, chains = tuple(wanted), prefixes(state)
    fits = {chain: sum(chain + name in state for name in wanted) for chain in chains}
    most = max(fits.values())
    if not most:
        shared = max((chain for chain in chains if all(name.startswith(chain) for name in state)), key=len)
        return {name.removeprefix(shared): value for name, value in state.items()}, []
    chosen, *rest = [chain for chain in chains if fits[chain] == most]
    inside = {name.removeprefix(chosen): value for name, value in state.items() if name.startswith(chosen)}
    if rest and chosen:
        copies = ", ".join(repr(chain.rstrip(".")) for chain in rest)
        return inside, [f"holds several models; {chosen.rstrip('.')!r} is used, not {copies}"]
    return {name: value for name, value in state.items() if not name.startswith(chosen)} | inside, []


def require_ranks(state: Mapping[str, Tensor], own: Mapping[str, Tensor], named: str) -> None:
    """Raise CheckpointError for a tensor of other axes than the model's, before any of their lengths is used.

    Args:
        own: the model's parameters.
        named: the file's name in the message.
    """
    ranks = {"cls_token": 3, "reg_token": 3, **{name: value.ndim for name, value in own.items()}}
    for name, value in state.items():
        if value.ndim != ranks.get(name, value.ndim):
            raise CheckpointError(f"{named}: {name!r} is {tuple(value.shape)}; expected {ranks[name]} axes.")


def unused(extra: Iterable[str], wanted: Iterable[str]) -> dict[str, int]:
    """Numbers of tensors by first word, of those among `extra` that no model needs: decoders, metrics, criteria.

    A name of a part that the model has, or that changes what a vision transformer computes, is not among them.
    """
    own = {name.partition(".")[0] for name in wanted}
    counts: dict[str, int] = {}
    for name in extra:
        first = name.partition(".")[0]
        if first not in own and not OF_THE_MODEL.match(first):
            counts[first] = counts.get(first, 0) + 1
    return counts
