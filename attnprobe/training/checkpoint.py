"""Checkpoints of a training run, from which it resumes exactly as if it had never stopped.

A checkpoint is a folder: `model.safetensors` and `config.json` are timm's `local-dir:` layout, for use;
`train_state.safetensors` and `state.json` are for resuming; `MANIFEST.json` has the SHA-256 of each. It is written
under another name and committed by renaming, so that it exists whole or not at all. Nothing is pickled.

No random state is stored: every step seeds the generators from (seed, epoch, step, process), so that training can
resume anywhere. `epoch-NNNN` is after so many epochs; `partial-EPOCH-STEP` is inside one, written when a run is stopped
or every `recovery_interval` steps.
"""

import json
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from attnprobe.core.errors import CheckpointError
from attnprobe.io import fs
from attnprobe.io.config import from_mapping
from attnprobe.io.run import MANIFEST, Run, damage, damaged_files, manifest_of

PARTIAL = "partial-"

MOST_BYTES = 64 << 20
"""Maximum size of a state.json, which has a few numbers per parameter."""


@dataclass(slots=True)
class Progress:
    """Position of a run in its training.

    Attributes:
        epoch: epochs done; of the next one `step` steps are done, with the sum `loss` of their losses.
        best: the best validation accuracy, after `best_epoch` epochs.
    """

    epoch: int = 0
    best: float = -1.0
    best_epoch: int = 0
    step: int = 0
    loss: float = 0.0

    def __post_init__(self) -> None:
        if min(self.epoch, self.best_epoch, self.step) < 0:
            raise ValueError(f"no training is at epoch {self.epoch}, step {self.step}")


@dataclass(frozen=True, slots=True)
class Learner:
    """The state that training changes: the model, its moving average (or None), optimiser and gradient scaler."""

    model: nn.Module
    ema: ModelEmaV3 | None
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler

    @property
    def deployed(self) -> nn.Module:
        """The model for use: the moving average, or the model itself."""
        return self.ema.module if self.ema else self.model


def save_checkpoint(
    run: Run, progress: Progress, learner: Learner, *, config_json: Mapping[str, Any], keep: int
) -> None:
    """Commit the state after `progress.epoch` epochs, then drop old ones, keeping the last `keep` and the best.

    Args:
        config_json: timm's config.json of the model.

    Raises:
        WorkError: the disk is full or fails; earlier checkpoints stay as they are.
    """
    with fs.as_work_error(f"writing the checkpoint of epoch {progress.epoch}"):
        _commit(run.checkpoint(progress.epoch), _files(progress, learner, config_json))
    for epoch in [e for e in run.epochs() if e <= progress.epoch][:-keep]:  # later ones are damaged
        if epoch != progress.best_epoch:
            _remove(run.checkpoint(epoch))
    for folder in run.checkpoints.glob(f"{PARTIAL}*"):
        _remove(folder)


def save_partial(run: Run, progress: Progress, learner: Learner, *, config_json: Mapping[str, Any]) -> None:
    """Commit the state inside an epoch, after `progress.step` of its steps, and drop earlier such states.

    Raises:
        WorkError: as `save_checkpoint`.
    """
    name = f"{PARTIAL}{progress.epoch:04d}-{progress.step:08d}"
    older = list(run.checkpoints.glob(f"{PARTIAL}*"))
    with fs.as_work_error(f"writing the checkpoint inside epoch {progress.epoch + 1}"):
        _commit(run.checkpoints / name, _files(progress, learner, config_json))
    for folder in older:
        if folder.name != name:
            _remove(folder)


def newest_checkpoint(run: Run) -> tuple[Path | None, str]:
    """The newest intact checkpoint (None if there is none), and a sentence about damaged newer ones, or "".

    Raises:
        CheckpointError: all are damaged. Beginning again would replace what may still be restored, log included.
    """
    reached = {folder: at for folder in run.checkpoints.glob("*") if (at := _reached(folder))}
    damaged: list[Path] = []
    for folder in sorted(reached, key=reached.__getitem__, reverse=True):
        if not damaged_files(folder):
            return folder, damage(damaged)
        damaged.append(folder)
    if damaged:
        raise CheckpointError(
            f"{run.path} has no intact checkpoint to resume from: {damage(damaged)}. Restore one, train into a new "
            f"folder (-o), or remove {run.checkpoints} to begin again."
        )
    return None, ""


def _reached(folder: Path) -> tuple[int, int] | None:
    """Epochs, and steps of the next, after which a checkpoint was written; None for another kind of folder."""
    found = re.fullmatch(rf"epoch-(\d{{4,}})|{PARTIAL}(\d{{4,}})-(\d{{8,}})", folder.name)
    if found is None:
        return None
    return (int(found[1]), 0) if found[1] else (int(found[2]), int(found[3]))


def load_checkpoint(folder: Path, learner: Learner) -> Progress:
    """Load a checkpoint into `learner`; its position in the training.

    Raises:
        CheckpointError: it is of another model.
    """
    try:
        state = fs.parse_json(fs.read_regular(folder / "state.json", MOST_BYTES))
        if not isinstance(state, dict):
            raise ValueError(f"state.json must hold an object, got {type(state).__name__}")
        at = from_mapping(Progress, {f.name: state[f.name] for f in fields(Progress) if f.name in state})
        tensors = load(fs.read_regular(folder / "train_state.safetensors"))
        deployed = load(fs.read_regular(folder / "model.safetensors"))
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} cannot be resumed from: {str(error).rstrip('.')}. Train into a new folder (-o)."
        ) from error
    weights = {name.removeprefix("model/"): v for name, v in tensors.items() if name.startswith("model/")}
    try:
        learner.model.load_state_dict(weights, strict=True)
        if learner.deployed is not learner.model:
            learner.deployed.load_state_dict(deployed, strict=True)
        _restore_optimizer(learner.optimizer, tensors, state["optimizer"])
        if state.get("scaler"):
            learner.scaler.load_state_dict(state["scaler"])
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise CheckpointError(f"{folder} is of another model; train into a new folder (-o).") from error
    return at


def _files(progress: Progress, learner: Learner, config_json: Mapping[str, Any]) -> dict[str, bytes]:
    """A checkpoint's files by name."""
    tensors, plain = _optimizer_state(learner.optimizer)
    tensors |= {f"model/{name}": value for name, value in learner.model.state_dict().items()}
    state = {**asdict(progress), "optimizer": plain, "scaler": learner.scaler.state_dict()}
    files = {
        "model.safetensors": _to_bytes(learner.deployed.state_dict(), {"format": "pt"}),
        "config.json": json.dumps(config_json, indent=1).encode(),
        "train_state.safetensors": _to_bytes(tensors),
        "state.json": json.dumps(state).encode(),
    }
    return {**files, MANIFEST: manifest_of(files)}


def _commit(final: Path, files: Mapping[str, bytes]) -> None:
    """Write `files` into a folder that appears under its name with all of them or not at all."""
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
    """Delete a checkpoint; renamed first, so that a kill half way leaves no incomplete one under its name."""
    doomed = fs.temporary_in(folder.parent)
    fs.rename(folder, doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_unfinished(run: Run) -> None:
    """Delete unfinished checkpoints of a killed run."""
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
