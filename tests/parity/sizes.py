"""Parameter and buffer counts of the full-size models in params.json."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnprobe.models import ALIASES, build_model
from attnprobe.models.variants.structured import StructuredViT
from tests.parity.difference import Difference


def covers(path: Path) -> bool:
    """Whether the file lists model sizes."""
    return path.name == "params.json"


def check(path: Path, quick: bool = False) -> Iterator[tuple[str, list[Difference]]]:
    """(model and classes, differences of its counts), every count exact; `quick` for one number of classes only."""
    for name, facts in json.loads(path.read_text())["models"].items():
        for classes, theirs in list(facts["by_num_classes"].items())[: 1 if quick else None]:
            with torch.device("meta"):
                model = build(name, facts, int(classes))
            yield (
                f"{name} {classes} classes",
                [
                    Difference(count, abs(ours - theirs[count]), 0.0 if ours == theirs[count] else float("inf"))
                    for count, ours in counts(model).items()
                ],
            )


def build(name: str, facts: dict[str, Any], num_classes: int) -> nn.Module:
    """A registered model by the authors' name; the double-underscored ones are variations of it."""
    base, *variations = name.split("__")
    options: dict[str, Any] = {"num_classes": num_classes}
    if facts["input_size"] != 224:
        options["img_size"] = facts["input_size"]
    if base.startswith("vit_tiny"):
        return StructuredViT(
            **options,
            patch_size=facts["patch_size"], embed_dim=facts["embed_dim"], depth=facts["depth"],
            num_heads=facts["heads"], mlp_ratio=facts["mlp_ratio"],
            **_TINY[variations[0] if variations else ""],
        )  # fmt: skip
    if "control_re_attention_off" in variations:
        return build_model(_CONTROLS[ALIASES[base]], num_classes=num_classes)
    if "no_dense_head" in variations:
        options |= {"dense": False, "mix_token": False}
    return build_model(base, **options)


_CONTROLS = {
    **{f"deepvit_{depth}": f"vit_{depth}" for depth in (16, 24, 32)},
    **{f"deepvit_{size}": f"vit_conv_{size}" for size in ("s", "l", "l_384")},
}

_TINY: dict[str, dict[str, Any]] = {
    "": {"class_token": False, "no_embed_class": True, "sin_pe": True, "global_pool": "avg"},
    "learned_positions": {"class_token": False, "no_embed_class": True, "global_pool": "avg"},
    "default_class_token": {},
}


def counts(model: nn.Module) -> dict[str, int]:
    """The counts params.json has, of one of our models; the fixed sinusoidal table is no buffer in theirs."""
    buffers = {name: value for name, value in model.state_dict().items() if name not in dict(model.named_parameters())}
    return {
        "trainable_parameters": sum(p.numel() for p in model.parameters()),
        "trainable_tensors": len(list(model.parameters())),
        "buffer_elements": sum(b.numel() for b in buffers.values()),
        "buffer_tensors": len(buffers),
    }
