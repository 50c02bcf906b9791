"""The model that weights belong to, from the names and shapes of parameters, for files that do not say it."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from attnprobe.core.errors import InputError
from attnprobe.models.build import build_model
from attnprobe.models.presets import MODELS

SIGNATURES = (
    ("attn.reatten_matrix.weight", "deepvit"),
    ("mlp.scale_channel", "refiner"),
    ("attn.qkv.weight", "vit"),
)
"""Parameters of a block that identify a variant; the first that is there decides."""


@dataclass(frozen=True, slots=True)
class Identified:
    """A model that fits some weights.

    Attributes:
        name: what `build_model` takes.
        options: its arguments.
        assumed: values of options that no parameter shows; empty for a model known by its sizes.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    assumed: Mapping[str, Any] = field(default_factory=dict)


def identify(state: Mapping[str, Tensor]) -> Identified | None:
    """The model with these weights, or None if it is not a vision transformer of ours.

    A model known by its sizes (DeepViT-S, Refiner-M ...) is taken with all its options. Otherwise the options are read
    off the shapes, where they show. The number of heads of a plain ViT does not: it is known by size, or not at all.
    """
    try:
        return _identified(state)
    except (LookupError, ValueError, ArithmeticError):  # a name or an axis that every such model has is not there
        return None


def _identified(state: Mapping[str, Tensor]) -> Identified | None:
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    suffixes = {re.sub(r"^blocks\.\d+\.", "", name) for name in shapes if name.startswith("blocks.")}
    variant = next((variant for suffix, variant in SIGNATURES if suffix in suffixes), None)
    if variant is None or "blocks.0.norm1.weight" not in shapes or "patch_embed.proj.weight" not in shapes:
        return None
    geometry = _geometry(shapes)
    for preset in MODELS.values():
        possible = variant == "vit" or preset.variant.name == variant
        if possible and all(preset.options.get(name) == geometry[name] for name in ("depth", "embed_dim")):
            options = _that_fit(preset.name, shapes, geometry)
            if options is not None:
                invisible = {"num_heads": preset.options["num_heads"]} if variant == "vit" else {}
                return Identified(preset.name, options, invisible)
    if variant == "deepvit":
        return _deepvit(shapes, geometry)
    if variant == "refiner":
        return _refiner(shapes, geometry)
    return None


def _geometry(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """The arguments of timm's `VisionTransformer` that show in the shapes; `img_size` is square or absent."""
    width = shapes["blocks.0.norm1.weight"][0]
    depth = 1 + max(int(name.split(".")[1]) for name in shapes if name.startswith("blocks."))
    conv_stem = "patch_embed.conv1.weight" in shapes
    first = "patch_embed.conv1.weight" if conv_stem else "patch_embed.proj.weight"
    patch = tuple(side * (2 if conv_stem else 1) for side in shapes["patch_embed.proj.weight"][2:])
    hidden = shapes["blocks.0.mlp.fc1.weight"][0]
    geometry: dict[str, Any] = {
        "depth": depth,
        "embed_dim": width,
        "mlp_ratio": hidden // width if hidden % width == 0 else hidden / width,
        "patch_size": patch[0] if patch[0] == patch[1] else patch,
        "in_chans": shapes[first][1],
        "num_classes": shapes["head.weight"][0] if "head.weight" in shapes else 0,
        "conv_stem": conv_stem,
    }
    n_prefix = ("cls_token" in shapes) + ("dist_token" in shapes) + shapes.get("reg_token", (1, 0, 1))[1]
    if "pos_embed" in shapes:
        side = math.isqrt(shapes["pos_embed"][1] - n_prefix)
        if side * side == shapes["pos_embed"][1] - n_prefix:
            geometry["img_size"] = side * patch[0] if patch[0] == patch[1] else (side * patch[0], side * patch[1])
    return geometry


def sizes_beyond(name: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options in which a named ViT of timm would have to be built to have weights of these sizes.

    Empty where they do not show, as of other architectures.
    """
    try:
        with torch.device("meta"):
            named = build_model(name).state_dict()
        own, other = (_geometry({key: tuple(x.shape) for key, x in each.items()}) for each in (state, named))
    except (InputError, LookupError, ValueError, ArithmeticError):
        return {}
    return {option: value for option, value in own.items() if value != other.get(option)}


def _that_fit(name: str, shapes: Mapping[str, tuple[int, ...]], geometry: Mapping[str, Any]) -> dict[str, Any] | None:
    """The options with which the named model has exactly these shapes, or None."""
    preset = MODELS[name].options
    options = {k: v for k, v in geometry.items() if k in ("num_classes", "img_size") and v != preset.get(k)}
    options |= {"in_chans": geometry["in_chans"]} if geometry["in_chans"] != 3 else {}
    if preset.get("dense") and "aux_head.weight" not in shapes:
        options |= {"dense": False, "mix_token": False}
    with torch.device("meta"):
        wanted = build_model(name, **options).state_dict()
    return options if {k: tuple(v.shape) for k, v in wanted.items()} == dict(shapes) else None


def _deepvit(shapes: Mapping[str, tuple[int, ...]], geometry: dict[str, Any]) -> Identified:
    mixing = [i for i in range(geometry["depth"]) if f"blocks.{i}.attn.reatten_matrix.weight" in shapes]
    heads = shapes[f"blocks.{mixing[0]}.attn.reatten_matrix.weight"][0]
    assumed = {"scale_adjustment": 1.0, "transform_scale": False}
    return Identified("deepvit_16", {**geometry, "num_heads": heads, "reattention": mixing, **assumed}, assumed)


def _refiner(shapes: Mapping[str, tuple[int, ...]], geometry: dict[str, Any]) -> Identified | None:
    blocks = [f"blocks.{i}.attn." for i in range(geometry["depth"])]
    share = [shapes[f"{block}qkv.weight"][0] == geometry["embed_dim"] for block in blocks]
    refining = [block for block in blocks if f"{block}adapt_bn.weight" in shapes]
    if not refining:
        return None  # the number of heads shows nowhere
    heads = shapes[f"{refining[0]}adapt_bn.weight"][0]
    own = [block for block, shares in zip(blocks, share, strict=True) if block in refining and not shares]
    expansion = shapes.get(f"{own[0]}DLA.conv_exp.weight", (heads,))[0] / heads if own else 3
    dense = "aux_head.weight" in shapes
    return Identified(
        "refiner_16",
        {
            **geometry,
            "num_heads": heads,
            "share": share,
            "refine": [block in own for block in blocks],
            "head_expand": expansion,
            "dense": dense,
            "mix_token": dense,
        },
    )
