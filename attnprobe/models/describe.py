"""Which model is meant by a run, a checkpoint or a name, and how is it written down so that others can build it?"""

import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from attnprobe.core.errors import InputError
from attnprobe.models.build import build_model, input_spec
from attnprobe.models.elsewhere import plugins
from attnprobe.models.load import Loaded, model_from
from attnprobe.models.presets import ALIASES, MODELS
from attnprobe.models.read import read_checkpoint
from attnprobe.models.variants import VARIANTS

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".tar")


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What a maps file says about its model.

    Attributes:
        model: the name `build_model` takes; `options` are its arguments.
        variant: the name in `VARIANTS`, or the class's name.
        sha256: of the weights; "" for initial weights.
        parameters: how many numbers were (or could be) trained.
        notes: what was adapted or assumed when the checkpoint was loaded.
    """

    model: str
    variant: str
    sha256: str
    options: Mapping[str, Any]
    parameters: int
    notes: tuple[str, ...] = ()


def resolve_model(
    ref: str | Path,
    architecture: str | None = None,
    *,
    img_size: int | None = None,
    seed: int = 0,
    allow_nonfinite: bool = False,
    initial: bool = False,
) -> tuple[nn.Module, ModelFacts]:
    """A run's directory, a checkpoint, or a name that `build_model` takes (with trained weights where it has some).

    Args:
        img_size: another resolution than the model's own.
        initial: of a name, initial weights in any case.

    Raises:
        CheckpointError, InputError: see `load_model` and `build_model`.
    """
    path = Path(str(ref).removeprefix("local-dir:"))
    local = str(ref).startswith("local-dir:")
    if path.suffix in (".h5", ".parts"):
        raise InputError(f"{ref} holds maps, not a model; name the run, the checkpoint or the model they are of.")
    if local or path.exists() or path.suffix in WEIGHT_FILES or (os.sep in str(ref) and ":" not in str(ref)):
        checkpoint = read_checkpoint(path)
        loaded = model_from(checkpoint, model=architecture, img_size=img_size, allow_nonfinite=allow_nonfinite)
        model, sha256 = loaded.module, checkpoint.sha256
    else:
        options: dict[str, Any] = {} if img_size is None else {"img_size": img_size}
        known = ":" in str(ref) or str(ref) in plugins() or timm.models.is_model_pretrained(str(ref))
        pretrained = known and not initial
        model = build_model(str(ref), seed=seed, **options, **({"pretrained": True} if pretrained else {}))
        sha256 = _sha256(model) if pretrained else ""
        loaded = Loaded(model, str(ref), options)
    name = ALIASES.get(loaded.name, loaded.name)
    classes = getattr(model, "num_classes", getattr(model, "num_labels", None))
    facts = ModelFacts(
        model=name,
        variant=MODELS[name].variant.name if name in MODELS else type(model).__name__,
        sha256=sha256,
        options={**loaded.options, **({} if classes is None else {"num_classes": classes})},
        parameters=sum(p.numel() for p in model.parameters()),
        notes=loaded.notes,
    )
    return model, facts


def variant_table() -> list[tuple[str, ...]]:
    """A header and one row per variant: name, paper, year, parameters of NAME_16, sites, what it changes."""
    rows = [("name", "arXiv", "year", "parameters", "maps", "what differs")]
    for variant in VARIANTS.values():
        with torch.device("meta"):
            count = sum(p.numel() for p in build_model(f"{variant.name}_16").parameters())
        maps = "weights = effective" if variant.sites == ("weights",) else "weights, effective"
        paper = variant.paper
        rows.append((variant.name, paper.arxiv or "-", str(paper.year or "-"), f"{count:,}", maps, variant.summary))
    return rows


def config_json(name: str, model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """timm's config.json: beside model.safetensors it makes a folder that `local-dir:` opens.

    Args:
        options: arguments `model` was built with; those that only matter in training are left out.
    """
    spec = input_spec(model)
    kept = {k: v for k, v in model.pretrained_cfg.items() if k in ("first_conv", "classifier", "fixed_input_size")}
    return {
        "architecture": name,
        "num_classes": model.num_classes,
        "num_features": model.num_features,
        "model_args": {k: v for k, v in options.items() if k not in ("num_classes", "drop_rate", "drop_path_rate")},
        "pretrained_cfg": {
            **kept,
            "input_size": [3, *spec.size],
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": spec.interpolation,
            "crop_pct": spec.crop_pct,
            "num_classes": model.num_classes,
        },
    }


def _sha256(model: nn.Module) -> str:
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode() + value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
