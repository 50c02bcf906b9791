"""A reference to a model (run, checkpoint, name) -> the model with its weights."""

import hashlib
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from attnprobe.core.errors import CheckpointError, InputError, option
from attnprobe.io.download import local_copy
from attnprobe.io.remote import RemotePath, place
from attnprobe.models.build import build_model, named_options, require_stored
from attnprobe.models.claims import claimed_options
from attnprobe.models.elsewhere import plugins
from attnprobe.models.fit import fit_options
from attnprobe.models.identify import identify
from attnprobe.models.read import Checkpoint, read_checkpoint
from attnprobe.models.weights import load_weights

WEIGHT_FILES = (".safetensors", ".pth", ".pt", ".bin", ".tar")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model with its weights.

    Attributes:
        module: the model.
        name: what `build_model` takes; `options` are its arguments.
        sha256: of the weights' file, or of the weights a name came with; "" for initial weights.
        notes: a sentence for everything that was adapted or assumed.
    """

    module: nn.Module
    name: str
    options: Mapping[str, Any]
    sha256: str = ""
    notes: tuple[str, ...] = ()


def load_model(
    checkpoint: Path | str,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    allow_nonfinite: bool = False,
    initial: bool = False,
    seed: int = 0,
) -> nn.Module:
    """The model that a reference names, with its weights; adaptations are warned about.

    Args:
        checkpoint: a run of `attnprobe train`, a folder with config.json and model.safetensors (also as
            `local-dir:PATH`), or a .safetensors, .pth, .pth.tar, .pt or .bin file, whose weights are loaded strictly;
            or a name that `build_model` takes (`deepvit_16`, `hf:PATH_OR_ID`, `hf-hub:ID`, `torchvision:NAME`, a name
            of timm's or of a plugin), with trained weights where there are some, else with initial ones. A URL (s3://,
            gs://, hf://) of a file or folder is downloaded once and then opened as one.
        model: the architecture, for files that neither say it nor are recognised by their parameters; with options
            where it was built with some, as in `vit_tiny_patch16_224:embed_dim=256,depth=6,num_heads=8`.
        num_classes: size of a new head with initial weights, if the checkpoint's is of another size.
        img_size: another resolution, one side or (rows, columns); the position table is resized. A table whose file
            does not say for which images it is counts as one for this resolution if it has as many entries.
        allow_nonfinite: accept NaN and infinite weights.
        initial: build a name with initial weights even if there are trained ones.
        seed: of initial weights.

    Raises:
        CheckpointError: missing, damaged, unsafe, of another architecture, or not finite.
        InputError: an unknown name, an option that does not fit, or a file of maps.
    """
    how = {"model": model, "num_classes": num_classes, "img_size": img_size, "allow_nonfinite": allow_nonfinite}
    loaded = open_model(checkpoint, initial=initial, seed=seed, **how)
    for note in loaded.notes:
        warnings.warn(note, stacklevel=2)
    return loaded.module


def open_model(ref: Path | str, *, initial: bool = False, seed: int = 0, **fitted: Any) -> Loaded:
    """The model of a reference, with its name, options and notes; arguments and errors as for `load_model`.

    Args:
        fitted: arguments of `model_from`; of a name img_size and num_classes.
    """
    ref = local_copy(ref) if isinstance(place(ref), RemotePath) else ref
    text, path = str(ref), Path(str(ref).removeprefix("local-dir:"))
    if path.suffix in (".h5", ".parts"):
        raise InputError(f"{ref} holds maps, not a model; name the run, the checkpoint or the model they are of.")
    is_path = text.startswith("local-dir:") or path.exists() or (os.sep in text and ":" not in text)
    if is_path or path.suffix in WEIGHT_FILES:
        return model_from(read_checkpoint(path), **fitted)
    text, options = named_options(text)
    options |= {name: fitted[name] for name in ("img_size", "num_classes") if fitted.get(name) is not None}
    trained = not initial and (":" in text or text in plugins() or timm.models.is_model_pretrained(text))
    built = build_model(text, seed=seed, **options, **({"pretrained": True} if trained else {}))
    return Loaded(built, text, options, _sha256(built) if trained else "")


def model_from(
    checkpoint: Checkpoint,
    *,
    model: str | None = None,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    allow_nonfinite: bool = False,
) -> Loaded:
    """The model of a checkpoint that has been read; arguments and errors as for `load_model`."""
    name, options, notes = _which_model(checkpoint, model)
    notes = [*checkpoint.notes, *notes]
    if model is None:
        require_stored(checkpoint, name, options)
    options, more = fit_options(checkpoint, name, options, num_classes=num_classes, img_size=img_size)
    built: Any = build_model(name, **options)
    notes += more
    new_head = num_classes is not None
    how: dict[str, Any] = {"new_head": new_head, "allow_nonfinite": allow_nonfinite, "options": options}
    notes += load_weights(built, checkpoint, name=name, **how)
    return Loaded(built, name, options, checkpoint.sha256, tuple(f"{checkpoint.path.name}: {note}." for note in notes))


def _which_model(checkpoint: Checkpoint, named: str | None) -> tuple[str, dict[str, Any], list[str]]:
    """Name, options and assumptions: as the user says, else as the file says, else as the parameters show."""
    name, given = (None, {}) if named is None else named_options(named)
    if name is not None and (given or name != checkpoint.architecture):
        stated = checkpoint.options if checkpoint.architecture in (None, name) else {}  # else of another model
        if set(stated) - set(given):
            require_stored(checkpoint, name, {**stated, **given})
        return _with_claims(checkpoint, name, {**stated, **given})
    if checkpoint.architecture is not None:
        return _with_claims(checkpoint, checkpoint.architecture, dict(checkpoint.options))
    found = identify(checkpoint.state)
    if found is None:
        known = f"calls its model {checkpoint.said!r:.80}, which is none of timm's or ours"
        says, example = known if checkpoint.said else "does not say which model it is", "deit_tiny_patch16_224"
        raise CheckpointError(
            f"{checkpoint.path.name} {says}, and its parameters do not show it (of a plain ViT, the number of heads "
            f"does not); give the name it was built with, as in {option('model', example)}, and its options where its "
            f"sizes are its own, as in {option('model', f'{example}:embed_dim=256,depth=6,num_heads=4')}."
        )
    claims, more = claimed_options(checkpoint, found.name, found.options)
    assumed = ", ".join(f"{name}={value}" for name, value in found.assumed.items() if name not in claims)
    notes = [f"taken for {found.name} with its sizes read off the weights; {assumed} assumed, which no weight shows"]
    options = {name: value for name, value in found.options.items() if name != "img_size"}  # `fit_options` judges it
    return found.name, options | claims, (notes if assumed else []) + more


def _with_claims(checkpoint: Checkpoint, name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any], list[str]]:
    """Name, options with those that the file's arguments state, and notes on them."""
    taken, notes = claimed_options(checkpoint, name, options)
    return name, options | taken, notes


def _sha256(model: nn.Module) -> str:
    total = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        total.update(name.encode() + value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
