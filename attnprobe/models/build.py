"""Models by name, freshly initialised or with pretrained weights."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from attnprobe.core.errors import CheckpointError, InputError, did_you_mean, option
from attnprobe.core.images import InputSpec
from attnprobe.io import fs
from attnprobe.io.config import parse_settings
from attnprobe.models import presets  # registers our models with timm
from attnprobe.models.elsewhere import build_elsewhere, is_elsewhere, plugins, without_network
from attnprobe.models.features import of_transformers
from attnprobe.models.file_options import check_flags, checked_options
from attnprobe.models.processor import processed
from attnprobe.models.read import Checkpoint, read_checkpoint

TORCHVISION = "torchvision:"
"""What names of torchvision's models begin with."""

SMALL = 10_000_000
"""Numbers that a model may have more than its file holds: 40 MB."""


def build_model(name: str, *, num_classes: int | None = None, seed: int | None = None, **options: Any) -> nn.Module:
    """A model by name: ours, timm's, `local-dir:PATH`, `hf-hub:ID`, `torchvision:NAME`, `hf:PATH_OR_ID` or a plugin's.

    Args:
        name: such as "deepvit_16" or "vit_small_patch16_224"; with options as in "vit_small_patch16_224:depth=6".
        num_classes: size of the head; the model's own default if None.
        seed: seed of the initial weights; PyTorch's current random state if None.
        options: passed on to the model's class: img_size, drop_path_rate, pretrained ...

    Raises:
        InputError: the name is unknown, or an option does not fit (image and patch size, an unknown keyword).
    """
    name, given = named_options(name)
    options = given | options
    if num_classes is not None:
        options["num_classes"] = num_classes
    check_flags(options)
    if name.startswith("local-dir:"):
        return _of_folder(name, seed=seed, **options)
    foreign = not timm.is_model(name) and is_elsewhere(name)
    if ":" not in name and not foreign and not timm.is_model(name):
        known = [*presets.MODELS, *presets.ALIASES, *plugins(), *timm.list_models(), *fs.beside(Path(name))]
        hint = did_you_mean(name, known, "attnprobe list models, timm.list_models()")
        raise InputError(f"no model and no file named {name!r}.{hint}")
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        try:
            if presets.is_structured(name, options):
                model = presets.structured(name, **options)
            else:
                model = build_elsewhere(name, **options) if foreign else timm.create_model(name, **options)
        except InputError:
            raise
        except (TypeError, AssertionError, ValueError, RuntimeError, OSError, LookupError, ArithmeticError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            fetched = ":" in name or bool(options.get("pretrained"))
            if isinstance(error, OSError) and fetched:
                initial = option("initial", python="build_model(NAME)")
                raise InputError(
                    f"{name!r} cannot be fetched: {reason.rstrip('.')}. Without a network name a folder that holds it, "
                    f"as in local-dir:FOLDER or hf:FOLDER; with {initial} a capture has initial weights."
                ) from error
            raise InputError(f"{name!r} cannot be built with {options or 'its defaults'}: {reason}") from error
    _check_patches_fit(name, model)
    return model


def named_options(name: str) -> tuple[str, dict[str, Any]]:
    """`vit_tiny_patch16_224:depth=6,num_heads=4` as name and options, written as the settings of a metric are.

    Raises:
        InputError: an option without a value, a second colon, or an option or value that a file may not give a model.
    """
    where = TORCHVISION if name.startswith(TORCHVISION) else ""
    model, colon, options = name.removeprefix(where).partition(":")
    if not colon or not (where or timm.is_model(model) or model in presets.ALIASES):
        return name, {}
    if ":" in options:
        raise InputError(
            f"{name!r}: expected one colon, then options with commas between, as in {model}:depth=6,num_heads=4."
        )
    listed = options.translate(str.maketrans("()", "[]"))
    given = parse_settings(re.split(r",(?![^\[]*\])", listed))  # depths=[2,2] and depths=(2,2) are one
    for key, value in given.items():  # YAML reads 1e-5 as text
        if isinstance(value, str) and re.fullmatch(r"\d+(\.\d*)?[eE][+-]?\d{1,3}", value):
            given[key] = float(value)
    return where + model, checked_options(given)  # a recipe's name may come from a file


def _of_folder(name: str, *, seed: int | None, pretrained: bool = False, **options: Any) -> nn.Module:
    """The model of a folder in timm's layout, without timm's loader, which before 1.0.26 ran code from .bin files."""
    checkpoint = read_checkpoint(name.removeprefix("local-dir:"))
    if checkpoint.architecture is None:
        raise InputError(f"{name}: its config.json names {checkpoint.said!r:.80}, which is none of timm's or ours.")
    require_stored(checkpoint, checkpoint.architecture, checkpoint.options)
    model = build_model(checkpoint.architecture, seed=seed, **{**checkpoint.options, **options})
    if pretrained:
        try:
            model.load_state_dict(dict(checkpoint.state), strict=True)
        except RuntimeError as error:
            raise InputError(f"{name}: its weights do not fit; load_model adapts heads and resolutions.") from error
    return model


def require_stored(checkpoint: Checkpoint, name: str, options: Mapping[str, Any]) -> None:
    """Raise if a model is far larger than its file's weights, before memory is taken for it.

    Raises:
        CheckpointError: the file declares a model that it does not hold.
    """
    stored = sum(value.numel() for value in checkpoint.state.values())
    depths = options.get("depth") or options.get("depths") or 0
    if (depth := sum(depths) if isinstance(depths, list | tuple) else depths) > len(checkpoint.state):
        raise CheckpointError(f"{checkpoint.path.name} holds {len(checkpoint.state)} tensors for {depth} blocks.")
    if (model := without_memory(name, options)) is None:
        return
    declared = sum(value.numel() for value in model.state_dict().values())
    if declared > 4 * stored + SMALL:
        raise CheckpointError(
            f"{checkpoint.path.name} holds {stored:,} numbers for a {name!r} of {declared:,}; its options do not fit "
            f"its weights. Name its model with {option('model')}."
        )


def without_memory(name: str, options: Mapping[str, Any]) -> nn.Module | None:
    """The model on the device "meta"; None if it cannot be built, or computes while it is built."""
    try:
        with torch.device("meta"):
            return build_model(name, **options)
    except (InputError, NotImplementedError):  # the latter is how a computation on "meta" ends
        return None


def input_spec(model: nn.Module) -> InputSpec:
    """The size and normalisation of a model's input: its attribute `input_spec`, or as transformers or timm have it.

    Of a model of transformers, the image processor in the folder it came from decides. The image size that a model of
    timm or torchvision was built for takes precedence over the default. A model built for one channel gets grey, and
    the grey of a mean and a std that are stated of three.
    """
    spec = _stated_input(model)
    return spec.grey() if len(spec.mean) == 3 and _takes_grey(model) else spec


def _takes_grey(model: nn.Module) -> bool:
    """True if a model of a known library was built for images of one channel."""
    if of_transformers(model):
        return getattr(getattr(model.config, "vision_config", model.config), "num_channels", 3) == 1
    if not type(model).__module__.startswith(("timm.", "attnprobe.")):
        return False  # which may make grey of colours before its first convolution
    stem = next((module for module in model.modules() if isinstance(module, nn.Conv2d)), None)
    return stem is not None and stem.in_channels == 1


def _stated_input(model: nn.Module) -> InputSpec:
    """The input as the model, its image processor or its configuration states it."""
    own = getattr(model, "input_spec", None)
    if isinstance(own, InputSpec):
        return own
    if of_transformers(model):
        with without_network():
            return processed(model.config.name_or_path, getattr(model.config, "vision_config", model.config))
    config = resolve_data_config({}, model=model)
    size = getattr(getattr(model, "patch_embed", None), "img_size", None) or getattr(model, "image_size", None)
    size = (size, size) if isinstance(size, int) else size or config["input_size"][-2:]
    return InputSpec(
        size=(int(size[0]), int(size[1])),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
        crop_pct=float(config["crop_pct"] or 1.0),
        crop_mode=config["crop_mode"],
    )


def _check_patches_fit(name: str, model: nn.Module) -> None:
    """Raise unless patches fill the image: timm rounds the grid down, dropping the right and lower edge of images."""
    embed = getattr(model, "patch_embed", None)
    size, patch = getattr(embed, "img_size", None), getattr(embed, "patch_size", None)
    if not size or not patch or getattr(embed, "dynamic_img_pad", False):
        return
    patch = (patch, patch) if isinstance(patch, int) else patch
    if any(side % p for side, p in zip(size, patch, strict=True)):
        nearest = tuple(max(round(side / p), 1) * p for side, p in zip(size, patch, strict=True))
        raise InputError(
            f"{name!r}: image size {tuple(size)} is not a multiple of the patch size {tuple(patch)}; "
            f"use img_size={nearest if nearest[0] != nearest[1] else nearest[0]}."
        )
