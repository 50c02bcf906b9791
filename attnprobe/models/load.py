"""A checkpoint -> a model with those weights, loaded strictly after declared adaptations."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from attnprobe.core.errors import CheckpointError
from attnprobe.models.adapt import resize_positions
from attnprobe.models.build import build_model, require_stored
from attnprobe.models.identify import identify, own_img_size
from attnprobe.models.read import Checkpoint, read_checkpoint
from attnprobe.models.variants.deepvit import DeepViT
from attnprobe.models.variants.refiner import Refiner

HEADS = ("head.weight", "head.bias", "aux_head.weight", "aux_head.bias")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with a checkpoint's weights.

    Attributes:
        module: the model.
        name: what `build_model` takes; `options` are its arguments.
        notes: what was adapted or assumed on the way, a sentence each.
    """

    module: nn.Module
    name: str
    options: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def load_model(
    checkpoint: Path | str,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    allow_nonfinite: bool = False,
) -> nn.Module:
    """Build the checkpoint's model and load its weights strictly; what had to be adapted is warned about.

    Args:
        checkpoint: a folder with config.json and model.safetensors (ours, timm's `local-dir:`), a run of
            `attnprobe train`, or a .safetensors, .pth, .pth.tar, .pt or .bin file.
        model: the architecture, for files that neither say it nor are recognised by their parameters.
        num_classes: of a new head with initial weights, if the checkpoint's is of another size.
        img_size: another resolution; the position table is resized.
        allow_nonfinite: accept NaN and infinite weights.

    Raises:
        CheckpointError: missing, damaged, unsafe, of another architecture, or not finite.
    """
    loaded = model_from(
        read_checkpoint(checkpoint),
        model=model,
        num_classes=num_classes,
        img_size=img_size,
        allow_nonfinite=allow_nonfinite,
    )
    for note in loaded.notes:
        warnings.warn(note, stacklevel=2)
    return loaded.module


def model_from(
    checkpoint: Checkpoint,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    allow_nonfinite: bool = False,
) -> Loaded:
    """As `load_model`, from a checkpoint already read, with what was adapted."""
    name, options, notes = _which_model(checkpoint, model)
    classes = checkpoint.state["head.weight"].shape[0] if "head.weight" in checkpoint.state else None
    if num_classes is not None or ("num_classes" not in options and classes is not None):
        options["num_classes"] = classes if num_classes is None else num_classes
    if img_size is not None:
        options["img_size"] = img_size
    if model is None:
        require_stored(checkpoint, name, options)
    built: Any = build_model(name, **options)
    if img_size is None and model is None and not _same_positions(checkpoint.state, built):
        options["img_size"] = own_img_size(checkpoint.state)  # used at the resolution it was trained for
        built = build_model(name, **options)
    new_head = num_classes is not None
    notes += load_weights(built, checkpoint, name=name, new_head=new_head, allow_nonfinite=allow_nonfinite)
    return Loaded(built, name, options, tuple(f"{checkpoint.path.name}: {note}." for note in notes))


def load_weights(
    model: Any, checkpoint: Checkpoint, *, name: str, new_head: bool, allow_nonfinite: bool = False
) -> list[str]:
    """Load a checkpoint strictly into a model, its position table resized where the resolution is another.

    Args:
        name: how messages call the model.
        new_head: a head for another number of classes keeps the model's own weights instead of being an error.

    Returns:
        What was adapted, a sentence each.

    Raises:
        CheckpointError: not finite, or of another architecture.
    """
    _check_finite(checkpoint, allow_nonfinite)
    state, own = dict(checkpoint.state), model.state_dict()
    notes = _fit_positions(state, model)
    heads = [key for key in HEADS if key in own]
    if new_head and any(key not in state or state[key].shape != own[key].shape for key in heads):
        notes.append(f"the head for {model.num_classes} classes has initial weights")
        state = {key: value for key, value in state.items() if key not in HEADS} | {key: own[key] for key in heads}
    _check_fits(checkpoint, state, name, model)
    model.load_state_dict(state, strict=True)
    if checkpoint.pretrained_cfg:
        model.pretrained_cfg = {**model.pretrained_cfg, **checkpoint.pretrained_cfg}
    return notes


def _which_model(checkpoint: Checkpoint, named: str | None) -> tuple[str, dict[str, Any], list[str]]:
    """Name, options, and what is assumed: as the user says, as the file says, or as the parameters show."""
    if named is not None and named != checkpoint.architecture:
        return named, {}, []
    if checkpoint.architecture is not None:
        return checkpoint.architecture, dict(checkpoint.options), []
    found = identify(checkpoint.state)
    if found is None:
        says = (
            f"calls its model {checkpoint.said!r:.80}, which is none of timm's or ours"
            if checkpoint.said
            else ("does not say which model it is")
        )
        raise CheckpointError(
            f"{checkpoint.path.name} {says}, and its parameters do not show it (of a plain ViT, the number of heads "
            "does not); name it, as in --model deepvit_16."
        )
    assumed = ", ".join(f"{option}={value}" for option, value in found.assumed.items())
    notes = [f"taken for {found.name} with its sizes read off the weights; {assumed} assumed, which no weight shows"]
    return found.name, dict(found.options), notes if assumed else []


def _same_positions(state: Mapping[str, Tensor], model: Any) -> bool:
    """False where both have a table of positions, for another number of patches."""
    table, wanted = state.get("pos_embed"), model.state_dict().get("pos_embed")
    if table is None or wanted is None or table.ndim != 3 or table.shape[2] != wanted.shape[2]:
        return True
    return table.shape[1] == wanted.shape[1]


def _fit_positions(state: dict[str, Tensor], model: Any) -> list[str]:
    """Resize the position table in `state` if only its number of patches is another; says so."""
    if _same_positions(state, model):
        return []
    table, wanted = state["pos_embed"], model.state_dict()["pos_embed"]
    n_prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    grid = model.patch_embed.grid_size
    if isinstance(model, DeepViT | Refiner):
        state["pos_embed"] = resize_positions(table, grid, n_prefix=n_prefix)
    else:
        state["pos_embed"] = resample_abs_pos_embed(table, list(grid), num_prefix_tokens=n_prefix)
    return [f"the position table was resized from {table.shape[1]} to {wanted.shape[1]} entries"]


def _check_finite(checkpoint: Checkpoint, allow: bool) -> None:
    bad = [n for n, v in checkpoint.state.items() if v.is_floating_point() and not torch.isfinite(v).all()]
    if bad and not allow:
        raise CheckpointError(
            f"{checkpoint.path.name} holds NaN or infinite weights in {len(bad)} tensors, first {bad[0]!r}; "
            "the training diverged. Use an earlier checkpoint, or --allow-nonfinite to look at it anyway."
        )


def _check_fits(checkpoint: Checkpoint, got: Mapping[str, Tensor], name: str, model: nn.Module) -> None:
    wanted = model.state_dict()
    wrong = [f"{k} is {tuple(got[k].shape)}, model wants {tuple(v.shape)}" for k, v in wanted.items()
             if k in got and got[k].shape != v.shape]  # fmt: skip
    missing, extra = sorted(set(wanted) - set(got)), sorted(set(got) - set(wanted))
    if wrong or missing or extra:
        parts = [("of other shapes", wrong), ("missing", missing), ("unknown to it", extra)]
        told = "; ".join(f"{len(items)} {what} ({', '.join(items[:2])})" for what, items in parts if items)
        likely = identify(checkpoint.state)
        advice = (
            f"It looks like {likely.name!r}; try --model {likely.name}" if likely else "Name its model with --model"
        )
        raise CheckpointError(f"{checkpoint.path.name} is not a {name!r} checkpoint: {told}. {advice}.")
