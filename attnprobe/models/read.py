"""Weights of a checkpoint file or folder, ours or another's, without ever running code from the file."""

import argparse
import hashlib
import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from torch import Tensor

from attnprobe.core.errors import CheckpointError, InputError, nearest, option
from attnprobe.io import fs
from attnprobe.io.pickles import load_tensors
from attnprobe.io.run import MANIFEST, Run, damaged_files
from attnprobe.models.file_options import checked_cfg, checked_options, claimed, is_architecture, trained_with
from attnprobe.models.holding import only_dict, only_model
from attnprobe.models.presets import ALIASES
from attnprobe.models.unwrap import flatten, unwrap, without_wrappers

MAX_EXPANSION = 20
"""Maximum deflate ratio of a tensor: usually near 1; 20 leaves room for zeros and stops a deflate bomb."""

MOST_ENTRIES = 100_000
"""Maximum number of members of a .pth, which has one per tensor."""

NUMBERS = {torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool, torch.uint8}
NUMBERS |= {torch.int8, torch.int16, torch.int32, torch.int64}
"""Types of parameters and buffers; complex, quantised and float8 tensors are of no model here."""

MOST_BYTES = 1 << 20
"""Maximum size of a config.json."""

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights in a model folder; first the format that cannot hold code."""

STATE_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "ema", "state_dict", "model_state_dict", "model")
"""Keys of the weights in training scripts' files; first the averaged ones, which are the published ones."""

NAMES = ("model", "model_name", "arch", "architecture", "name", "backbone", "timm_model")
"""Arguments of training scripts that may hold the architecture's name."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Contents of a checkpoint file or folder.

    Attributes:
        path: the file the weights are in.
        sha256: of that file, as hex.
        architecture: the model's name, or None if the file names none that is known here.
        options: arguments of the model, checked against those a file may set.
        state: parameters and buffers by name.
        pretrained_cfg: pixels, crop and so on, as timm writes them.
        said: the file's own name of its architecture, or "".
        stored: every tensor by the name it has in the file, before prefixes of models were removed.
        claimed: what the arguments of a training script say of options, unchecked; see `claims`.
        notes: a sentence for every choice that was made in reading.
    """

    path: Path
    sha256: str
    architecture: str | None
    state: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    pretrained_cfg: Mapping[str, Any] = field(default_factory=dict)
    said: str = ""
    stored: Mapping[str, Tensor] = field(default_factory=dict)
    claimed: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def read_checkpoint(path: Path | str) -> Checkpoint:
    """The weights of a checkpoint and its description of the model; nothing in it is executed.

    Raises:
        CheckpointError: missing, truncated, or in need of unpickling something that is not plain data.
    """
    path = Path(path)
    if not path.exists():
        beside = nearest(path.name, [name for name in fs.beside(path) if not name.endswith(".h5")])
        raise CheckpointError(
            f"no checkpoint at {path}; give a folder with config.json, a .safetensors or a .pth file.{beside}"
        )
    if path.is_dir():
        return _read_folder(path)
    stored, loaded, sha256 = _read_weights(path)
    state = unwrap(stored)[0]
    args, notes = _arguments(loaded), _choice(path, loaded)
    said = _said(args, loaded)
    try:
        options, cfg = trained_with(args)
    except InputError as error:
        raise CheckpointError(f"{path.name}: {error}") from None
    return Checkpoint(path, sha256, _known(said), state, options, cfg, said, stored, claimed(args), notes)


def _arguments(loaded: Mapping[str, Any]) -> dict[str, Any]:
    """Options that a training script was started with; entries nested under "model", as Hydra has them, are lifted."""
    args = loaded.get("args") or loaded.get("hyper_parameters") or loaded.get("hparams") or loaded.get("config") or {}
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    if not isinstance(args, Mapping):
        return {}
    nested = args.get("model")
    nested = vars(nested) if isinstance(nested, argparse.Namespace) else nested
    return {**args, **nested, "model": None} if isinstance(nested, Mapping) else dict(args)


def _said(args: Mapping[str, Any], loaded: Mapping[str, Any]) -> str:
    """The name of an architecture that a file gives: the first that is known here, else the first at all."""
    names = [name for name in (*map(args.get, NAMES), loaded.get("arch")) if isinstance(name, str)]
    return next(filter(is_architecture, names), names[0] if names else "")


def _known(said: str) -> str | None:
    """Our name of an architecture; None if it is unknown here, or an address."""
    return ALIASES.get(said, said) if is_architecture(said) else None


def _read_folder(folder: Path) -> Checkpoint:
    run = Run(folder)
    if run.checkpoints.is_dir():
        folder = run.choose_checkpoint()
    elif (folder / MANIFEST).exists() and (damaged := damaged_files(folder)):
        raise CheckpointError(f"{folder}: {damaged[0]} is not what was written; use an earlier checkpoint.")
    config_path = folder / "config.json"
    weights = next((path for path in (folder / name for name in WEIGHTS) if path.exists()), None)
    saved = sorted(folder.glob("checkpoint-*/config.json"), key=lambda path: path.stat().st_mtime)
    if not config_path.exists() and saved:  # of transformers' Trainer
        raise CheckpointError(f"{folder} holds checkpoints of a Trainer; name one, as in hf:{saved[-1].parent}.")
    if not config_path.exists() or weights is None:
        raise CheckpointError(f"{folder} has no config.json and model.safetensors; is it a run or a model folder?")
    try:
        config = fs.parse_json(fs.read_regular(config_path, MOST_BYTES))
        said, options = config["architecture"], dict(config.get("model_args") or {})
        if isinstance(config.get("num_classes"), int):
            options["num_classes"] = config["num_classes"]
        if not isinstance(said, str):
            raise TypeError(f"architecture is {said!r}")
        known = _known(said)
        options, cfg = checked_options(options if known else {}), checked_cfg(dict(config.get("pretrained_cfg") or {}))
    except InputError as error:
        raise CheckpointError(f"{config_path}: {error}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, KeyError) and "architectures" in config:
            raise CheckpointError(f"{folder} is a model of Hugging Face's transformers; name it hf:{folder}.") from None
        raise CheckpointError(
            f"{config_path} is not a model configuration: {error!r}; save the model again."
        ) from error
    stored, _, sha256 = _read_weights(weights)
    state = unwrap(stored)[0]
    return Checkpoint(weights, sha256, known, state, options, cfg, said, stored)


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """Tensors by stored name, everything else that a pickle holds, and the file's SHA-256."""
    try:
        with fs.open_regular(path) as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            file.seek(0)
            if path.suffix == ".safetensors":
                return without_wrappers(_checked(path, _read_safetensors(path, file))), {}, sha256
            loaded = _read_pickle(path, file)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; copy it again.") from error
    return without_wrappers(_find_state(path, loaded)), loaded, sha256


def _read_safetensors(path: Path, file: BinaryIO) -> dict[str, Tensor]:
    try:
        return safetensors_load(file.read())
    except (SafetensorError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"{path.name} is truncated or not a safetensors file ({error}); copy it again."
        ) from error


def _read_pickle(path: Path, file: BinaryIO) -> dict[str, Any]:
    """A PyTorch file as plain data: tensors, numbers, arrays, strings, paths, containers, argparse.Namespace."""
    _require_saved_by_torch(path, file)
    _check_zip(path, file)
    plain: list[Any] = [argparse.Namespace]
    plain += [  # a Windows path is read as any other; 3.13 calls the module otherwise
        (PurePosixPath, f"{module}.{kind}")
        for module in ("pathlib", "pathlib._local")
        for kind in ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")
    ]
    try:
        loaded = load_tensors(file, plain)
    except InputError as error:
        raise CheckpointError(f"{path.name}: {error}. Ask its author for a .safetensors file.") from None
    except pickle.UnpicklingError as error:
        needs = str(error).split("GLOBAL ")[-1].split(" ")[0] if "GLOBAL " in str(error) else "arbitrary objects"
        advice = (
            "It may be a whole model; save model.state_dict() with the code that made it"
            if re.search(r"\.[A-Z]\w+$", needs)
            else "Ask its author for a .safetensors file"
        )
        raise CheckpointError(
            f"{path.name} wants to build {needs} while loading; nothing was run. {advice}."
        ) from error
    except Exception as error:  # a damaged file raises any of ten types
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path.name} is truncated or not a PyTorch checkpoint ({first}); copy it again."
        ) from error
    return loaded if isinstance(loaded, dict) else only_dict(loaded, path.name)


def _require_saved_by_torch(path: Path, file: BinaryIO) -> None:
    """Refuse a file that is neither a zip archive nor a pickle, such as an image or a text, before it is read."""
    start = file.read(8)
    file.seek(0)
    if not start.startswith((b"PK", b"\x80")):
        what = "an HDF5 file, perhaps of maps" if start == b"\x89HDF\r\n\x1a\n" else "something else"
        raise CheckpointError(
            f"{path.name} holds no weights: expected .safetensors, or what torch.save writes, got {what}. Images are "
            f"named with {option('data')}."
        )


def _check_zip(path: Path, file: BinaryIO) -> None:
    """Refuse what would expand to far more than the file, before torch expands it: deflate bombs, shared members."""
    if not zipfile.is_zipfile(file):
        file.seek(0)
        return
    try:
        entries = zipfile.ZipFile(file).infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise CheckpointError(f"{path.name} is no intact zip file ({error}); copy it again.") from error
    finally:
        file.seek(0)
    stored = sum(entry.compress_size for entry in entries)
    if stored > os.fstat(file.fileno()).st_size or len(entries) > MOST_ENTRIES:
        raise CheckpointError(
            f"{path.name}: its {len(entries)} members of {stored} bytes overlap or are too many; refused. Ask its "
            "author for a .safetensors file."
        )
    for entry in entries:
        if entry.file_size > MAX_EXPANSION * max(entry.compress_size, 4096):
            raise CheckpointError(
                f"{path.name}: {entry.filename} would expand {entry.compress_size} bytes to {entry.file_size}; "
                "refused as a decompression bomb. Ask its author for a .safetensors file."
            )


def _find_state(path: Path, loaded: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors in a training script's dictionary, by their stored names."""
    held = _states(path, loaded)
    state = next(iter(held.values())) if held else only_model(loaded, path.name) or flatten(loaded, path.name)
    if not state:
        raise CheckpointError(
            f"{path.name} holds no weights, only {', '.join(map(str, list(loaded)[:5])) or 'nothing'}."
        )
    return _checked(path, state)


def _states(path: Path, loaded: Mapping[str, Any]) -> dict[str, dict[str, Tensor]]:
    """The tensors under each of `STATE_KEYS`, the preferred first; "ema", which some keep in part, only if whole."""
    nested = {key: loaded[key] for key in STATE_KEYS if isinstance(loaded.get(key), Mapping)}
    held = {key: flatten(tree, path.name) for key, tree in nested.items()}
    if len(held) > 1 and len(held.get("ema", ())) < max(len(state) for key, state in held.items() if key != "ema"):
        held.pop("ema", None)
    return held


def _choice(path: Path, loaded: Mapping[str, Any]) -> tuple[str, ...]:
    """A note on which weights are opened, of a file that holds some under several keys."""
    chosen, *others = [key for key, state in _states(path, loaded).items() if state] or [""]
    left = ", ".join(map(repr, others))
    return (f"holds weights under several names; {chosen!r} is opened, not {left}",) if others else ()


def _checked(path: Path, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, all of numbers that the file holds.

    Raises:
        CheckpointError: a tensor of another type or layout, or larger than its storage.
    """
    for name, value in state.items():
        if value.dtype not in NUMBERS or value.layout != torch.strided or value.device.type != "cpu":
            kind = value.dtype if value.layout == torch.strided else value.layout
            raise CheckpointError(
                f"{path.name}: {name!r} holds {kind} on {value.device}; expected plain floats or integers. Convert it, "
                "as with tensor.float()."
            )
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path.name}: {name!r} declares {tuple(value.shape)} but stores {value.untyped_storage().nbytes()} "
                "bytes; refused. Ask its author for a .safetensors file."
            )
    return state
