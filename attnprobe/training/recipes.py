"""Recipes: the shipped YAML files, one of the user's, or a file written for timm's train.py, as our options."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from attnprobe.core.errors import InputError, did_you_mean
from attnprobe.core.registry import Registry
from attnprobe.io.config import read_yaml
from attnprobe.training.config import TrainConfig


@dataclass(frozen=True, slots=True)
class Recipe:
    """A shipped YAML file; its first line says how to run it."""

    name: str
    path: Path
    summary: str


def _shipped(path: Path) -> Recipe:
    return Recipe(path.stem, path, path.read_text().splitlines()[0].removeprefix("# "))


RECIPES = Registry("recipe", *map(_shipped, sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))))


def read_recipe(recipe: str | Path, *, ignore_unknown: bool = False) -> dict[str, Any]:
    """The options of a shipped recipe, by name, or of a YAML file of ours or for timm's train.py.

    Args:
        ignore_unknown: drop unknown names, instead of refusing them.

    Raises:
        UnknownName: no recipe of this name.
        InputError: a file without options, or with some that do not exist here; see `from_timm`.
    """
    path = Path(recipe)
    is_file = path.suffix in (".yaml", ".yml") or path.is_file()
    values = read_yaml(path if is_file else RECIPES[str(recipe)].path)
    known = {field.name for field in fields(TrainConfig)}
    return from_timm(values, known, source=str(recipe), ignore_unknown=ignore_unknown)


DEFAULTS: dict[str, Any] = {
    "dataset": "folder", "batch_size": 128, "epochs": 300, "opt": "sgd", "weight_decay": 2e-5, "lr_base": 0.1,
    "sched_on_updates": False, "warmup_epochs": 5, "warmup_lr": 1e-5, "min_lr": 0.0, "scale": [0.08, 1.0],
    "ratio": [3 / 4, 4 / 3], "hflip": 0.5, "color_jitter": 0.4, "smoothing": 0.1, "workers": 4, "model_ema": False,
    "model_ema_decay": 0.9998, "model_ema_warmup": False, "amp": False, "amp_dtype": "float16",
}  # fmt: skip
"""timm's defaults where ours differ."""

RENAMED = {
    "data": "data_dir", "native_amp": "amp", "checkpoint_hist": "keep_checkpoints", "cutmix_min_max": "cutmix_minmax",
    "relabel_dense_weight": "dense_weight",
}  # fmt: skip

OF_THE_MODEL = {
    "gp": "global_pool", "return_dense": "dense", "mix_token": "mix_token", "weight_init": "weight_init",
    "pseudo_input1": "pseudo_input1", "pseudo_input2": "pseudo_input2", "init_once": "init_once", "sin_pe": "sin_pe",
    "class_token": "class_token", "no_embed_class": "no_embed_class", "in_chans": "in_chans",
}  # fmt: skip
"""Options that are arguments of the model here."""

WITHOUT_EFFECT = {
    "dataset_download", "dataset_trust_remote_code", "decay_milestones", "device_modules", "dist_bn",
    "eval_checkpoint", "eval_metric", "experiment", "fast_norm", "fuser", "input_img_mode", "input_key",
    "local_rank", "log_interval", "lr_cycle_decay", "lr_cycle_limit", "lr_cycle_mul", "lr_k_decay",
    "lr_noise_pct", "lr_noise_std", "model_ema_force_cpu", "no_ddp_bb", "no_prefetcher", "no_resume_opt",
    "num_classes", "num_gpu", "output", "patience_epochs", "pin_mem", "relabel", "relabel_size", "save_images",
    "target_key", "token_label", "train_crop_mode", "train_split", "use_multi_epochs_loader", "val_split",
    "validation_batch_size", "validation_batch_size_multiplier", "warmup_prefix", "worker_seeding",
    "world_size",
}  # fmt: skip
"""Options of timm's output, of the model's own values here, or that act only beside others refused below."""

ONLY_WHEN_OFF = {
    "apex_amp", "aug_splits", "bce_loss", "bce_target_thresh", "bn_eps", "bn_momentum", "bn_tf", "class_map",
    "crop_pct", "drop_block", "drop_connect", "head_init_bias", "head_init_scale", "input_size", "interpolation",
    "jsd", "jsd_loss", "kd_model_name", "lr_noise", "mean", "no_aug", "pretrained", "pretrained_path", "resplit",
    "resume", "split_bn", "start_epoch", "std", "synchronize_step", "torchscript", "tta",
}  # fmt: skip
"""Options that are refused unless they are off: they would change the result, and do not exist here."""

SIGNS = WITHOUT_EFFECT | ONLY_WHEN_OFF | set(RENAMED)
"""Keys by which a file is recognised as timm's."""


def from_timm(
    values: Mapping[str, Any], known: set[str], *, source: str, ignore_unknown: bool = False
) -> dict[str, Any]:
    """Options of ours from a file that may be timm's; a file of ours is returned as it is.

    Most names are the same. Options without effect at their value are dropped; one that would change the result and
    does not exist here is refused by name.

    Args:
        values: the file's contents.
        known: the names of our options.
        source: the file's name in messages.
        ignore_unknown: drop names that neither timm's train.py nor we have, instead of refusing them.

    Raises:
        InputError: unknown names, or an option that does not exist here is switched on.
    """
    unknown = sorted(set(values) - known - SIGNS - set(OF_THE_MODEL))
    if unknown and not ignore_unknown:
        raise InputError(
            f"{source}: no option named {', '.join(map(repr, unknown))}.{did_you_mean(unknown[0], known)} "
            "--ignore-unknown trains without."
        )
    values = {name: value for name, value in values.items() if name not in unknown}
    if not SIGNS & set(values):
        return values
    on = [name for name in sorted(ONLY_WHEN_OFF & set(values)) if values[name] not in (None, False, 0, "", [])]
    if on:
        listed = ", ".join(f"{name}={values[name]!r}" for name in on)
        raise InputError(
            f"{source}: {listed} does not exist here and would change the result. Remove it, or use "
            "initial_checkpoint for weights and model_kwargs for the model."
        )
    options = dict(DEFAULTS)
    model_kwargs = dict(values.get("model_kwargs") or {})
    for name, value in values.items():
        name = RENAMED.get(name, name)
        if name in OF_THE_MODEL:
            if value is not None:
                model_kwargs[OF_THE_MODEL[name]] = value
        elif name == "torchcompile":  # timm has the backend's name
            options[name] = bool(value)
        elif name in known and value is not None:
            options[name] = value
    if options.get("lr") is not None:
        options.pop("lr_base")
    if "dataset" in values and not values["dataset"]:
        options["dataset"] = "folder"
    return {**options, **({"model_kwargs": model_kwargs} if model_kwargs else {})}
