"""What is in a checkpoint, and how is it read back so that training goes on exactly as if it had never stopped?

A folder: `model.safetensors` and `config.json` are timm's `local-dir:` layout, for use; `train_state.safetensors` and
`state.json` are for resuming; `MANIFEST.json` has the SHA-256 of each. Written beside and committed by renaming the
folder, so that a checkpoint exists whole or not at all. Nothing is pickled.

No random state is stored: every epoch seeds its generators from (seed, epoch), so an epoch can be run again alone.
"""

import json
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from attnprobe.core import fs
from attnprobe.core.errors import CheckpointError
from attnprobe.core.run import MANIFEST, Run, manifest_of


@dataclass(slots=True)
class Progress:
    """How far a run has come: `epoch` epochs are done; `best` is the best validation accuracy, at `best_epoch`."""

    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0


def save_checkpoint(
    run: Run,
    progress: Progress,
    *,
    model: nn.Module,
    deployed: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
    config_json: Mapping[str, Any],
    keep: int,
) -> None:
    """Commit the state after `progress.epoch` epochs, then drop old ones, keeping the last `keep` and the best.

    Args:
        model: the module that is trained; `deployed` is what users load (its moving average, or itself).
        config_json: timm's config.json of the model.

    Raises:
        WorkError: the disk is full or fails; earlier checkpoints stay as they are.
    """
    tensors, plain = _optimizer_state(optimizer)
    tensors |= {f"model/{name}": value for name, value in model.state_dict().items()}
    state = {
        "epoch": progress.epoch,
        "best": progress.best,
        "best_epoch": progress.best_epoch,
        "optimizer": plain,
        "scaler": scaler.state_dict(),
    }
    files = {
        "model.safetensors": _to_bytes(deployed.state_dict(), {"format": "pt"}),
        "config.json": json.dumps(config_json, indent=1).encode(),
        "train_state.safetensors": _to_bytes(tensors),
        "state.json": json.dumps(state).encode(),
    }
    files[MANIFEST] = manifest_of(files)
    with fs.as_work_error(f"writing the checkpoint of epoch {progress.epoch}"):
        _commit(run.checkpoint(progress.epoch), files)
    for epoch in run.epochs()[:-keep]:
        if epoch != progress.best_epoch:
            _remove(run.checkpoint(epoch))


def load_checkpoint(
    run: Run,
    *,
    model: nn.Module,
    deployed: nn.Module,
    optimizer: torch.optim.Optimizer,
    scaler: torch.amp.GradScaler,
) -> Progress | None:
    """Put the newest intact checkpoint of `run` into these objects; None if there is none.

    Raises:
        CheckpointError: the checkpoint is of another model.
    """
    folder = run.latest_checkpoint()
    if folder is None:
        return None
    state = json.loads((folder / "state.json").read_text())
    tensors = load_file(folder / "train_state.safetensors")
    weights = {name.removeprefix("model/"): v for name, v in tensors.items() if name.startswith("model/")}
    try:
        model.load_state_dict(weights, strict=True)
        if deployed is not model:
            deployed.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    except RuntimeError as error:
        raise CheckpointError(f"{folder} is of another model; train into a new folder (-o).") from error
    _restore_optimizer(optimizer, tensors, state["optimizer"])
    if state.get("scaler"):
        scaler.load_state_dict(state["scaler"])
    return Progress(state["epoch"], state["best"], state["best_epoch"])


def _commit(final: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` into a folder that appears under its name whole or not at all."""
    fs.make_folder(final.parent)
    if final.exists():  # damaged, or training would not be doing this epoch again
        fs.rename(final, final.with_name(f"damaged-{final.name}-{secrets.token_hex(2)}"))
    unfinished = fs.temporary_in(final.parent)
    fs.make_folder(unfinished)
    try:
        for name, data in files.items():
            fs.write_file(unfinished / name, data)
        fs.commit_folder(unfinished, final)
    except OSError:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def _remove(folder: Path) -> None:
    """Drop a checkpoint; renamed first, so that a kill half way leaves no half checkpoint under its name."""
    doomed = fs.temporary_in(folder.parent)
    fs.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_unfinished(run: Run) -> None:
    """Drop what a killed run left half written."""
    for folder in run.checkpoints.glob(f"{fs.TEMPORARY}*"):
        shutil.rmtree(folder, ignore_errors=True)


def _to_bytes(tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> bytes:
    return save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata)


def _optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors by "optimizer/INDEX/NAME", and everything else as JSON-able values."""
    tensors, plain = {}, {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"optimizer/{index}/{name}"] = value
            else:
                plain[f"{index}/{name}"] = value
    return tensors, plain


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], plain: Mapping[str, Any]
) -> None:
    state: dict[int, dict[str, Any]] = {}
    entries = {k.removeprefix("optimizer/"): v for k, v in tensors.items() if k.startswith("optimizer/")}
    for key, value in {**entries, **plain}.items():
        index, _, name = key.partition("/")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
