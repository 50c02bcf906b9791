"""Pruning: a model without some of its blocks, attention branches and heads, in a form that others can open.

Blocks are dropped: the rest is the same architecture with a smaller `depth`. Heads are removed from the matrices
that make queries, keys, values and outputs; since timm's classes cannot say that a block has fewer heads of the same
width, or no attention, such a model is called `pruned_vit`, which timm knows once attnprobe.models is imported.

Only attention with independent heads can lose one: a plain softmax, and variants that act on each head alone. Where a
map mixes heads (re-attention, talking heads, Refiner, rich) every head is made of all softmaxes, so none can go;
that is refused. Zeroing its output instead would save nothing; `verify-drops` measures its cost.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import timm
from safetensors.torch import save
from timm.models import PretrainedCfg, build_model_with_cfg, register_model
from torch import nn

from attnprobe.core.errors import InputError
from attnprobe.models.build import build_model
from attnprobe.models.describe import config_json
from attnprobe.models.families import TimmFamily, family_of
from attnprobe.models.fewer_heads import with_heads
from attnprobe.models.parts import Family, Removal, Smaller
from attnprobe.models.presets import MODELS
from attnprobe.models.same import compute_alike

NAME = "pruned_vit"
"""The architecture of models whose blocks have lost heads or attention."""


def smaller_model(model: Any, removal: Removal, name: str, options: Mapping[str, Any]) -> Smaller:
    """A copy of a model without these parts, rebuilt as its files will be opened.

    Args:
        name, options: what `build_model` made the model from.

    Raises:
        InputError: no such block or head, nothing would be left, heads that cannot be removed, or a model whose library
            cannot describe what is left.
    """
    family = family_of(model)
    if isinstance(family, Family):
        return family.smaller(model, removal, name, options)
    smaller = pruned(model, removal)
    name, options, rebuilt = written_down(model, smaller, name, options, removal.blocks)
    return timm_files(rebuilt, name, options)


def timm_files(model: nn.Module, name: str, options: Mapping[str, Any]) -> Smaller:
    """A model that `build_model` makes from this name and these options, stored in timm's `local-dir:` layout."""

    def files() -> dict[str, bytes]:
        state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
        config = json.dumps(config_json(name, model, options), indent=1)
        return {"model.safetensors": save(state, {"format": "pt"}), "config.json": config.encode()}

    return Smaller(model, name, options, files)


def pruned(model: nn.Module, removal: Removal) -> Any:
    """A copy of a model of timm's or of ours without these blocks, attention branches and heads.

    Raises:
        InputError: no such block or head, nothing would be left, or heads that cannot be removed.
    """
    family: TimmFamily = family_of(model)
    removal.check(family.parts(model))
    smaller: Any = deepcopy(model)
    for number, part in enumerate(family.parts(smaller), 1):
        if number in removal.attention:
            _set_heads(part.block, ())
        elif number in removal.heads:
            _set_heads(part.block, [head for head in range(part.heads) if head + 1 not in removal.heads[number]])
    number = 0
    for sequence in family.sequences(smaller):
        first, number = number + 1, number + len(sequence)
        dropped = [block for block in range(first, number + 1) if block in removal.blocks]
        if dropped and len(dropped) == len(sequence):
            raise InputError(f"none of blocks {first} to {number}, one stage, would be left; leave one.")
        for block in reversed(dropped):
            del sequence[block - first]
    return smaller


def _set_heads(block: Any, kept: Sequence[int]) -> None:
    """Leave these heads (from 0) of a block; without any, its attention branch goes, with the norm before it."""
    block.attn = with_heads(block.attn, kept)
    if not kept:
        block.norm1 = nn.Identity()


def written_down(
    model: Any, smaller: Any, name: str, options: Mapping[str, Any], dropped: Collection[int]
) -> tuple[str, dict[str, Any], nn.Module]:
    """Name and options that build a pruned model anew, and that model with its weights.

    Args:
        model: the whole model, of this name and these options; blocks `dropped` (from 1) are missing in `smaller`.

    Raises:
        InputError: the architecture cannot be built without these blocks: they are of different kinds in turn, or what
            a block computes depends on its place.
    """
    family: TimmFamily = family_of(model)
    of, options = options.get("of", name), {k: v for k, v in options.items() if k not in ("of", "heads")}
    options |= family.depth([len(blocks) for blocks in family.sequences(smaller)])
    preset = MODELS[of].options if of in MODELS else {}
    chosen = options.get("reattention", preset.get("reattention"))
    if chosen is not None:
        kept = [block for block in range(len(model.blocks)) if block + 1 not in dropped]
        options["reattention"] = [place for place, block in enumerate(kept) if block in set(chosen)]
    heads = [part.heads for part in family.parts(smaller)]
    rebuilt: Any = build_model(of, **options)
    if [part.heads for part in family.parts(rebuilt)] != heads:
        options, of = {"of": of, "heads": heads, **options}, NAME
        rebuilt = build_model(of, **options)
    refusal = f"{name!r} cannot lose these blocks"
    rebuilt.pretrained_cfg = {**rebuilt.pretrained_cfg, **model.pretrained_cfg}
    try:
        rebuilt.load_state_dict(smaller.state_dict(), strict=True)
    except RuntimeError as error:
        raise InputError(f"{refusal}: its blocks are of different kinds, and those left do not make one.") from error
    if not compute_alike(smaller, rebuilt):
        alternate = len({part.turn for part in family.parts(model)}) > 1
        pairs = "; blocks alternate, so drop neighbours in pairs" if alternate else ""
        raise InputError(f"{refusal}: what a block computes depends on its place{pairs}.")
    return of, options, rebuilt


def _build(of: str, heads: Sequence[int] | None = None, **options: Any) -> nn.Module:
    model: Any = timm.create_model(of, **options)
    family = family_of(model)
    parts = family.parts(model)
    if heads is not None and len(heads) != len(parts):
        raise InputError(f"heads={list(heads)} must name one number per block, of which there are {len(parts)}.")
    for part, count in zip(parts, heads or (), strict=False):
        if not 0 <= count <= part.heads:
            raise InputError(f"heads={list(heads or ())}: a block of {of!r} has 0 to {part.heads}.")
        if 0 < count < part.heads and part.refusal:
            raise InputError(f"heads={list(heads or ())}: {part.refusal}.")
        if count < part.heads:
            _set_heads(part.block, range(count))
    return model


def pruned_vit(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The model named `of` with `heads[i]` heads in block i, none for no attention; other options are those of `of`."""
    if kwargs.get("pretrained_cfg") is None:  # pixels as `of` wants them; its weights are of another shape
        own = timm.get_pretrained_cfg(kwargs["of"]) or PretrainedCfg()
        kwargs["pretrained_cfg"] = replace(own, url="", file=None, hf_hub_id=None, hf_hub_filename=None)
    return build_model_with_cfg(_build, NAME, pretrained, **kwargs)


register_model(pruned_vit)
