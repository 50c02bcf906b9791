"""Facts about a model: what a maps file, a table of variants and timm's config.json say of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnprobe.models.build import build_model, input_spec
from attnprobe.models.load import open_model
from attnprobe.models.presets import ALIASES, MODELS
from attnprobe.models.variants import VARIANTS


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """A maps file's description of its model.

    Attributes:
        model: the name `build_model` takes; `options` are its arguments.
        variant: the name in `VARIANTS`, or the class's name.
        sha256: of the weights; "" for initial ones.
        parameters: number of trainable parameters.
        notes: a sentence for everything that was adapted or assumed in loading.
    """

    model: str
    variant: str
    sha256: str
    options: Mapping[str, Any]
    parameters: int
    notes: tuple[str, ...] = ()


def resolve_model(ref: str | Path, architecture: str | None = None, **options: Any) -> tuple[nn.Module, ModelFacts]:
    """The model of a reference and the facts about it.

    Args:
        ref: a run, a checkpoint or a name; errors and `options` as of `load_model`, whose warnings are notes here.
        architecture: the model's name, for files that neither say it nor are recognised by their parameters.
    """
    loaded = open_model(ref, model=architecture, **options)
    model, name = loaded.module, ALIASES.get(loaded.name, loaded.name)
    classes = getattr(model, "num_classes", getattr(model, "num_labels", None))
    facts = ModelFacts(
        model=name,
        variant=MODELS[name].variant.name if name in MODELS else type(model).__name__,
        sha256=loaded.sha256,
        options={**loaded.options, **({} if classes is None else {"num_classes": classes})},
        parameters=getattr(model, "n_parameters", None) or sum(p.numel() for p in model.parameters()),
        notes=loaded.notes,
    )
    return model, facts


def variant_table() -> list[tuple[str, ...]]:
    """A header and one row per variant: name, paper, year, parameters of NAME_16, sites, change."""
    rows = [("name", "arXiv", "year", "parameters", "maps", "what differs")]
    for variant in VARIANTS.values():
        with torch.device("meta"):
            count = sum(p.numel() for p in build_model(f"{variant.name}_16").parameters())
        maps = "weights = effective" if variant.sites == ("weights",) else "weights, effective"
        paper = variant.paper
        rows.append((variant.name, paper.arxiv or "-", str(paper.year or "-"), f"{count:,}", maps, variant.summary))
    return rows


def config_json(name: str, model: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """timm's config.json, which makes a folder with model.safetensors one that `local-dir:` opens.

    Args:
        options: arguments of `build_model`; those that only matter in training are left out.
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
            "input_size": [len(spec.mean), *spec.size],
            "mean": list(spec.mean),
            "std": list(spec.std),
            "interpolation": spec.interpolation,
            "crop_pct": spec.crop_pct,
            "crop_mode": spec.crop_mode,
            "num_classes": model.num_classes,
        },
    }
