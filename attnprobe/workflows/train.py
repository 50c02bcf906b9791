"""`attnprobe train`: a recipe becomes a trained run."""

import json
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml

from attnprobe.core.errors import InputError, WorkError, option
from attnprobe.core.images import ImageSource, InputSpec
from attnprobe.core.memory import is_out_of_memory
from attnprobe.data import load_images
from attnprobe.io import fs
from attnprobe.io.config import from_mapping, read_yaml, to_yaml
from attnprobe.io.ranks import held
from attnprobe.io.remote import RemotePath, place
from attnprobe.io.run import Run
from attnprobe.models import build_model, input_spec, load_weights, read_checkpoint
from attnprobe.models.describe import config_json
from attnprobe.models.file_options import checked_options
from attnprobe.training import MAY_CHANGE, TrainConfig, TrainResult, pick_device, read_recipe
from attnprobe.training import train as run_training
from attnprobe.workflows.probe import Probe


def train(
    recipe: str | Path, out: Path, *, settings: dict[str, Any] | None = None, ignore_unknown: bool = False
) -> TrainResult:
    """Train a recipe's model; the same call resumes a stopped run.

    Args:
        recipe: a name in `RECIPES`, or a YAML file of ours or for timm's train.py.
        out: the run's directory.
        settings: options that replace the recipe's.
        ignore_unknown: drop unknown options of the file, instead of refusing them.

    Raises:
        InputError: unknown recipe or option, or `out` holds a run with other options.
        CheckpointError, WorkError: see `attnprobe.training.train`.
        Stopped: on SIGTERM.
        InUse: another command is at work in `out`.
    """
    with _remarks_of_the_first():
        options = {**read_recipe(recipe, ignore_unknown=ignore_unknown), **(settings or {})}
    config = from_mapping(TrainConfig, options, source=str(recipe))
    checked_options(config.model_kwargs)
    with held(Path(out)):
        with _remarks_of_the_first():
            run = _same_run(Path(out), config)
        return _train(run, config)


def _train(run: Run, config: TrainConfig) -> TrainResult:
    """Join images, model and probe of a run that this process holds, and train."""
    with torch.device("meta"):  # without memory: it is built only to ask how it wants its pixels
        spec = input_spec(_built(config, _model_options(config)))
    sets = {split: images_of(config, split, spec) for split in ("train", "val")}
    n_classes = len(sets["train"].class_names)
    if config.num_classes not in (None, n_classes):
        raise InputError(
            f"num_classes={config.num_classes}, but {config.dataset} has {n_classes}; leave num_classes out."
        )
    options = {**_model_options(config), "num_classes": n_classes}
    model = _built(config, options, seed=config.seed)
    if config.initial_checkpoint:
        start = read_checkpoint(config.initial_checkpoint)
        with _remarks_of_the_first():
            for note in load_weights(model, start, name=config.model, new_head=True):
                warnings.warn(f"{start.path.name}: {note}.", stacklevel=2)
    facts = config_json(config.model, model, options)
    pick_device(config.device)
    probe = _probe(config, sets["val"], run) if config.probe_every else None
    with _threads(config.threads), _status(run), _memory(config), _config_of(run, config):
        return run_training(model, sets["train"], sets["val"], config, run, config_json=facts, watch=probe)


def images_of(config: TrainConfig, split: str, spec: InputSpec) -> ImageSource:
    """One split. Pillow augments training images where they are decoded, so those do not live on the device."""
    if isinstance(place(config.dataset), RemotePath) or config.dataset.endswith(".tar"):  # a recipe may be anybody's
        raise InputError(f"{config.dataset}: training reads images of this machine; download them, and name a folder.")
    options: dict[str, Any] = {"data_dir": Path(config.data_dir).expanduser() if config.data_dir else None}
    if config.download:
        options["download"] = True
    if split == "train" and (config.by_pillow or config.token_label_data):  # label maps need the place of the crop
        options["resident_bytes"] = 0
    return load_images(
        config.dataset, split, spec=spec, bad_images=config.bad_images, workers=config.workers, **options
    )


def train_seeds(
    recipe: str | Path,
    out: Path,
    seeds: Sequence[int],
    *,
    settings: dict[str, Any] | None = None,
    ignore_unknown: bool = False,
) -> Iterator[TrainResult]:
    """Train runs that differ in their seed alone, one after the other, as `out`_s0 and `out`_s1.

    Each is an ordinary run; the same call skips finished ones and resumes the one that was stopped.

    Args:
        recipe, settings, ignore_unknown: as for `train`.
        out: the runs' common path, to which `_sSEED` is added.
        seeds: one per run.

    Raises:
        InputError: no seed, one twice, or a seed among the settings.
        InputError, CheckpointError, WorkError, Stopped, InUse: see `train`.
    """
    if not seeds or len(set(seeds)) < len(seeds):
        raise InputError(f"seeds {', '.join(map(str, seeds)) or 'none'} must be one or more different numbers.")
    if "seed" in (settings or {}):
        raise InputError(f"a seed is set both by {option('seeds')} and among the settings; leave one of them out.")
    for seed in seeds:
        settings_of = {**(settings or {}), "seed": seed}
        yield train(recipe, run_of_seed(out, seed), settings=settings_of, ignore_unknown=ignore_unknown)


def run_of_seed(out: Path, seed: int) -> Path:
    """The directory of a seed's run: `runs/vit`, 3 -> `runs/vit_s3`, which the pattern `vit_s*` matches."""
    return out.with_name(f"{out.name}_s{seed}")


def _is_first() -> bool:
    """True unless torchrun started this process as another than the first; before the processes have met."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _remarks_of_the_first() -> Iterator[None]:
    """Warnings from the first process alone, where every process of torchrun reads the same files."""
    with warnings.catch_warnings():
        if not _is_first():
            warnings.simplefilter("ignore")
        yield


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    """Set PyTorch's threads on a CPU for the duration."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _status(run: Run) -> Iterator[None]:
    """Write exit code and message into the run's status.json under torchrun, which itself always returns 1."""
    code, message = 0, ""
    try:
        yield
    except BaseException as error:
        code, message = getattr(error, "exit_code", 130 if isinstance(error, KeyboardInterrupt) else 1), str(error)
        raise
    finally:
        if os.environ.get("RANK") == "0":
            text = json.dumps({"exit_code": code, "message": message})
            with suppress(OSError):  # the error under way matters more
                fs.write_file(run.path / "status.json", text.encode(), overwrite=True)


@contextmanager
def _memory(config: TrainConfig) -> Iterator[None]:
    """Turn running out of memory into an error that names a smaller batch size with the same recipe."""
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        size, steps = f"batch_size={config.batch_size // 2}", f"grad_accum_steps={2 * config.grad_accum_steps}"
        raise WorkError(
            f"out of memory with batch_size={config.batch_size}; train into a new folder with "
            f"{option('set', f'{size} --set {steps}', python=f'{size} and {steps}')}, which updates the weights with "
            f"as many images, or use {option('auto-batch')}."
        ) from error


PAST_IS_FINAL = ("step", "multistep")
"""Schedules whose rates up to an epoch do not depend on the number of epochs; others fall to `min_lr` at the end."""


def _same_run(out: Path, config: TrainConfig) -> Run:
    """The run in a directory, which may be none yet.

    Raises:
        InputError: its options would give another result.
    """
    run = Run(out)
    before = read_yaml(run.config) if run.config.exists() else {}
    now = yaml.safe_load(to_yaml(config))
    others = [name for name, value in now.items() if before.get(name, value) != value and name not in MAY_CHANGE]
    more = now["epochs"] - before.get("epochs", now["epochs"])
    if others == ["epochs"] and more > 0 and config.sched in PAST_IS_FINAL:
        warnings.warn(
            f"{out}: epochs {before['epochs']} -> {now['epochs']}; the {config.sched} schedule's rates so far do not "
            "depend on their number, so this becomes the run of all of them.", stacklevel=3,
        )  # fmt: skip
    elif others:
        changes = ", ".join(f"{name} {before[name]} -> {now[name]}" for name in others[:3])
        more, there = f" and {len(others) - 3} more" if len(others) > 3 else "", f"initial_checkpoint={out}"
        raise InputError(
            f"{out} holds a run with other options: {changes}{more}. Train into a new folder; "
            f"{option('set', there, python=there)} starts there from its weights."
        )
    return run


@contextmanager
def _config_of(run: Run, config: TrainConfig) -> Iterator[None]:
    """Write the run's options, and remove them if training refuses them: what cannot start leaves no run behind."""
    is_new = not run.config.exists()
    _write_config(run, config)
    try:
        yield
    except InputError:
        if is_new and not run.checkpoints.exists():
            run.config.unlink(missing_ok=True)
        raise


def _write_config(run: Run, config: TrainConfig) -> None:
    text = to_yaml(config)
    with fs.as_work_error(f"starting the run in {run.path}"):
        if not run.config.exists():
            with suppress(FileExistsError):  # of several processes one is first
                fs.write_file(run.config, text.encode())
        elif run.config.read_text() != text and _is_first():
            fs.write_file(run.config, text.encode(), overwrite=True)


def _model_options(config: TrainConfig) -> dict[str, Any]:
    named = {"img_size": config.img_size, "drop_rate": config.drop, "drop_path_rate": config.drop_path}
    return {**config.model_kwargs, **{name: value for name, value in named.items() if value}}


def _built(config: TrainConfig, options: Mapping[str, Any], seed: int | None = None) -> Any:
    """The model, which wants its pixels as `config` says."""
    model: Any = build_model(config.model, seed=seed, **options)
    channels = options.get("in_chans", 3)
    for name in ("mean", "std", "crop_pct", "interpolation"):
        if (value := getattr(config, name)) is not None:
            value = value * channels if isinstance(value, tuple) and len(value) == 1 else value
            model.pretrained_cfg = {**model.pretrained_cfg, name: value}
    return model


def _probe(config: TrainConfig, images: ImageSource, run: Run) -> Probe:
    epochs = config.epochs + config.cooldown_epochs
    options = {"every": config.probe_every, "budget": config.probe_budget, "tensorboard": config.log_tensorboard}
    return Probe(images, run.probe, epochs=epochs, **options)
