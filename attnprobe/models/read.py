"""Weights of a checkpoint file or folder, ours or another's, without ever running code from the file."""

import argparse
import hashlib
import json
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as safetensors_load
from torch import Tensor

from attnprobe.core.errors import CheckpointError, InputError
from attnprobe.io import fs
from attnprobe.io.run import MANIFEST, Run, damaged_files
from attnprobe.models.file_options import checked_cfg, checked_options, is_architecture
from attnprobe.models.presets import ALIASES

MAX_EXPANSION = 20
"""Maximum deflate ratio of a tensor: usually near 1; 20 leaves room for zeros and stops a deflate bomb."""

MOST_BYTES = 1 << 20
"""Maximum size of a config.json."""

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
"""Names of the weights in a model folder; first the format that cannot hold code."""

STATE_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "state_dict", "model")
"""Keys of the weights in training scripts' files; first the averaged ones, which are the published ones."""

PREFIXES = ("module.", "_orig_mod.", "model.")
"""Prefixes of parameter names from DataParallel, torch.compile and wrappers."""


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
    """

    path: Path
    sha256: str
    architecture: str | None
    state: Mapping[str, Tensor]
    options: Mapping[str, Any] = field(default_factory=dict)
    pretrained_cfg: Mapping[str, Any] = field(default_factory=dict)
    said: str = ""


def read_checkpoint(path: Path | str) -> Checkpoint:
    """The weights of a checkpoint and its description of the model; nothing in it is executed.

    Raises:
        CheckpointError: missing, truncated, or in need of unpickling something that is not plain data.
    """
    path = Path(path)
    if not path.exists():
        raise CheckpointError(
            f"no checkpoint at {path}; give a folder with config.json, a .safetensors or a .pth file."
        )
    if path.is_dir():
        return _read_folder(path)
    if path.suffix == ".safetensors":
        return Checkpoint(path, _sha256(path), None, _read_safetensors(path))
    loaded = _read_pickle(path)
    state, args = _find_state(path, loaded)
    said = next((name for name in (args.get("model"), loaded.get("arch")) if isinstance(name, str)), "")
    options = {"num_classes": args["num_classes"]} if isinstance(args.get("num_classes"), int) else {}
    try:
        return Checkpoint(path, _sha256(path), _known(said), state, checked_options(options), said=said)
    except InputError as error:
        raise CheckpointError(f"{path.name}: {error}") from None


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
    if not config_path.exists() or weights is None:
        raise CheckpointError(f"{folder} has no config.json and model.safetensors; is it a run or a model folder?")
    try:
        config = json.loads(fs.read_regular(config_path, MOST_BYTES))
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
    state = (
        _read_safetensors(weights)
        if weights.suffix == ".safetensors"
        else _find_state(weights, _read_pickle(weights))[0]
    )
    return Checkpoint(weights, _sha256(weights), known, state, options, cfg, said)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors_load(path.read_bytes())
    except (SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(
            f"{path.name} is truncated or not a safetensors file ({error}); copy it again."
        ) from error


def _read_pickle(path: Path) -> dict[str, Any]:
    """A PyTorch file as plain data: tensors, numbers, strings, containers, argparse.Namespace, numpy scalars."""
    _check_zip(path)
    scalar = np.float64(0).__reduce__()[0]  # its module is called otherwise in numpy 1 and 2, and in their files
    plain: list[Any] = [argparse.Namespace, np.dtype]
    plain += [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    plain += [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")]
    try:
        with torch.serialization.safe_globals(plain):
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        needs = str(error).split("GLOBAL ")[-1].split(" ")[0] if "GLOBAL " in str(error) else "arbitrary objects"
        raise CheckpointError(
            f"{path.name} wants to build {needs} while loading; nothing was run. "
            "Ask its author for a .safetensors file."
        ) from error
    except Exception as error:  # a damaged file raises any of ten types
        first = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path.name} is truncated or not a PyTorch checkpoint ({first}); copy it again."
        ) from error
    return loaded if isinstance(loaded, dict) else {"state_dict": loaded}


def _check_zip(path: Path) -> None:
    """Refuse a deflate bomb before torch expands it."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.file_size > MAX_EXPANSION * max(entry.compress_size, 4096):
                raise CheckpointError(
                    f"{path.name}: {entry.filename} would expand {entry.compress_size} bytes to {entry.file_size}; "
                    "refused as a decompression bomb. Ask its author for a .safetensors file."
                )


def _find_state(path: Path, loaded: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The parameters in a training script's dictionary, and the arguments it was started with."""
    args = loaded.get("args") or loaded.get("hyper_parameters") or {}
    args = vars(args) if isinstance(args, argparse.Namespace) else args
    state = next((loaded[key] for key in STATE_KEYS if isinstance(loaded.get(key), Mapping)), loaded)
    state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for prefix in PREFIXES:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    if not state:
        raise CheckpointError(
            f"{path.name} holds no weights, only {', '.join(map(str, list(loaded)[:5])) or 'nothing'}."
        )
    for name, value in state.items():
        if value.layout != torch.strided or value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(
                f"{path.name}: {name!r} declares {tuple(value.shape)} but stores {value.untyped_storage().nbytes()} "
                "bytes; refused. Ask its author for a .safetensors file."
            )
    return state, args if isinstance(args, dict) else {}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
