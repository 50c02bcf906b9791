"""Files written for timm's train.py as our options: each option is honoured, without effect, or refused by name.

Question: which of timm's options may be dropped? Choice: those that cannot change what is trained (output, speed), and
those that stand at timm's default; what is dropped is listed in a note. All others are refused, for a run that ignores
one of its options is another run. An `args.yaml` that timm wrote names every option of its parser (0.9.16 to 1.0.31).
Question: whose file is it? Most names are the same, and defaults differ. Choice: timm's where at least `ENOUGH` names
are timm's alone and none is ours alone, and the note says so.
"""

from collections.abc import Mapping
from typing import Any

from attnprobe.core.errors import InputError, did_you_mean, option

ENOUGH = 2
"""Names that only timm's files have; one may have been copied into a file of ours."""

DEFAULTS: dict[str, Any] = {
    "dataset": "folder", "batch_size": 128, "epochs": 300, "opt": "sgd", "weight_decay": 2e-5, "lr_base": 0.1,
    "sched_on_updates": False, "warmup_epochs": 5, "warmup_lr": 1e-5, "min_lr": 0.0, "scale": [0.08, 1.0],
    "ratio": [3 / 4, 4 / 3], "hflip": 0.5, "color_jitter": 0.4, "smoothing": 0.1, "workers": 4, "model_ema": False,
    "model_ema_decay": 0.9998, "model_ema_warmup": False, "amp": False, "amp_dtype": "float16",
}  # fmt: skip
"""timm's defaults where ours differ."""

RENAMED = {
    "data": "data_dir", "native_amp": "amp", "checkpoint_hist": "keep_checkpoints", "cutmix_min_max": "cutmix_minmax",
    "relabel_dense_weight": "dense_weight", "dataset_download": "download", "relabel_data": "token_label_data",
}  # fmt: skip

OF_THE_MODEL = {
    "gp": "global_pool", "return_dense": "dense", "mix_token": "mix_token", "weight_init": "weight_init",
    "pseudo_input1": "pseudo_input1", "pseudo_input2": "pseudo_input2", "init_once": "init_once", "sin_pe": "sin_pe",
    "class_token": "class_token", "no_embed_class": "no_embed_class", "in_chans": "in_chans",
}  # fmt: skip
"""Options that are arguments of the model here."""

WITHOUT_EFFECT = {
    "backup", "device_modules", "dist_bn", "distributed", "eval_checkpoint", "experiment", "fast_norm", "fuser",
    "local_rank", "log_interval", "model_ema_force_cpu", "no_ddp_bb", "no_prefetcher", "num_gpu", "output", "pin_mem",
    "prefetcher", "rank", "relabel", "relabel_size", "save_images", "synchronize_step", "token_label", "use_lmdb",
    "use_multi_epochs_loader", "validation_batch_size", "validation_batch_size_multiplier", "wandb_resume_id",
    "wandb_tags", "worker_seeding", "world_size",
}  # fmt: skip
"""Options that cannot change what is trained: output, logging, memory, speed."""

WEIGHTS = "name weights that you have with initial_checkpoint"
FOLDERS = "name the folders or splits train and val"
LOSS = "only cross-entropy, label smoothing, mixup and cutmix are here"
SPLITS = "augmentation splits are not here"
NORMS = "set it in model_kwargs if the model takes it"

UNLESS: dict[str, tuple[tuple[Any, ...], str]] = {
    "amp_impl": (("native",), "PyTorch's own mixed precision is used"),
    "annealing_weight": ((), "dense_weight stays what it is"),
    "aot_autograd": ((), "use torchcompile"),
    "apex_amp": ((), "PyTorch's own mixed precision is used"),
    "aug_splits": ((), SPLITS),
    "bce_loss": ((), LOSS),
    "bce_pos_weight": ((), LOSS),
    "bce_sum": ((), LOSS),
    "bce_target_thresh": ((), LOSS),
    "bn_eps": ((), NORMS),
    "bn_momentum": ((), NORMS),
    "bn_tf": ((), NORMS),
    "class_map": ((), "classes are the folders, in alphabetical order"),
    "dense_avg_pool": ((), "use dense_weight"),
    "drop_block": ((), "use drop_path"),
    "drop_connect": ((), "use drop_path"),
    "epoch_repeats": ((), "raise epochs"),
    "eval_metric": (("top1",), "the best checkpoint is that of the highest top-1"),
    "finetune": ((), WEIGHTS),
    "gaussian_blur_prob": ((), "leave it out"),
    "grayscale_prob": ((), "leave it out"),
    "head_init_bias": ((), NORMS),
    "head_init_scale": ((), NORMS),
    "input_img_mode": (("RGB",), "images are read as RGB; set in_chans for others"),
    "input_key": ((), "rename the column to image"),
    "jsd": ((), SPLITS),
    "jsd_loss": ((), SPLITS),
    "kd_model_name": ((), "distillation is not here"),
    "layer_decay_min_scale": ((), "use layer_decay alone"),
    "layer_decay_no_opt_scale": ((), "use layer_decay alone"),
    "lr_noise": ((), "leave it out"),
    "model_dtype": (("float32",), "use amp and amp_dtype"),
    "naflex_loader": ((), "images are resized to one size"),
    "no_aug": ((), "set scale and ratio to [1, 1], hflip to 0 and color_jitter to 0"),
    "opt_kwargs": ((), "use opt_eps, opt_betas and momentum"),
    "post_weight_init": ((), "use weight_init: impulse3 (which wants sin_pe: true) or mimetic0.7_0.7"),
    "pretrained": ((), WEIGHTS),
    "pretrained_path": ((), WEIGHTS),
    "resplit": ((), SPLITS),
    "resume": ((), "the same command with the same -o resumes its own run"),
    "sam_rho": ((), "sharpness-aware minimisation is not here"),
    "split_bn": ((), SPLITS),
    "start_epoch": ((), "the same command with the same -o resumes its own run"),
    "target_key": ((), "rename the column to label"),
    "torchcompile_mode": ((), "torchcompile alone takes the default mode"),
    "torchscript": ((), "use torchcompile"),
    "train_crop_mode": (("rrc",), "training crops are random resized ones"),
    "train_split": (("train",), FOLDERS),
    "tta": ((), "leave it out"),
    "use_repeated_aug": ((), "use aug_repeats"),
    "val_split": (("validation", "val", "test"), FOLDERS),
}
"""Option that would change the result -> values besides "off" at which it does not, and what to do instead."""

BESIDE = {
    "dataset_trust_remote_code": "dataset", "kd_distill_type": "kd_model_name", "kd_model_kwargs": "kd_model_name",
    "kd_temperature": "kd_model_name", "distill_loss_weight": "kd_model_name", "task_loss_weight": "kd_model_name",
    "lr_noise_pct": "lr_noise", "lr_noise_std": "lr_noise", "naflex_loss_scale": "naflex_loader",
    "naflex_max_seq_len": "naflex_loader", "naflex_patch_size_probs": "naflex_loader",
    "naflex_patch_sizes": "naflex_loader", "naflex_train_seq_lens": "naflex_loader", "no_resume_opt": "resume",
    "patience_epochs": "sched: plateau", "sam_ratio": "sam_rho",
}  # fmt: skip
"""Option that acts only where another one, which is refused, is on."""

TIMMS = WITHOUT_EFFECT | set(UNLESS) | set(BESIDE) | (set(RENAMED) - {"relabel_dense_weight"})
"""Names by which a file is recognised as timm's."""

SHARED = {
    "aa", "amp", "amp_dtype", "aug_repeats", "batch_size", "channels_last", "clip_grad", "clip_mode", "color_jitter",
    "color_jitter_prob", "cooldown_epochs", "cutmix", "cutmix_minmax", "data_dir", "dataset", "decay_epochs",
    "decay_milestones", "decay_rate", "device", "drop", "drop_path", "epochs", "grad_accum_steps",
    "grad_checkpointing", "hflip", "img_size", "initial_checkpoint", "layer_decay", "log_tensorboard", "log_wandb",
    "lr", "lr_base", "lr_base_scale", "lr_base_size", "lr_cycle_decay", "lr_cycle_limit", "lr_cycle_mul",
    "lr_k_decay", "min_lr", "mixup", "mixup_mode", "mixup_off_epoch", "mixup_prob", "mixup_switch_prob", "model",
    "model_ema", "model_ema_decay", "model_ema_warmup", "model_kwargs", "momentum", "num_classes", "opt",
    "opt_betas", "opt_eps", "ratio", "recount", "recovery_interval", "remode", "reprob", "scale", "sched",
    "sched_on_updates", "seed", "smoothing", "sync_bn", "torchcompile", "train_interpolation", "vflip",
    "wandb_project", "warmup_epochs", "warmup_lr", "warmup_prefix", "weight_decay", "workers",
    "cos_reg_component", "cos_reg_weight", "cls_weight", "dense_weight", "token_label_data", "mean", "std", "crop_pct",
    "interpolation",
}  # fmt: skip
"""Options of ours that timm's train.py has, too, or the copies of it that belong to the papers."""

OFF = (None, False, 0, "", [], {})

OF_PAPERS = {
    "vit_base_patch16_224_in21k": "is timm's plain ViT; its paper's rich heads are model richvit_b16, and the recipe "
    "richvit_imagenet",
}
"""Models of timm that a paper's command names for its own."""


def from_timm(
    values: Mapping[str, Any], known: set[str], *, source: str, ignore_unknown: bool = False
) -> tuple[dict[str, Any], str]:
    """Options of ours from a file that may be timm's, and a note on how it was understood, empty for a file of ours.

    Args:
        values: the file's contents.
        known: the names of our options.
        source: the file's name in messages.
        ignore_unknown: drop names that neither timm's train.py nor we have, instead of refusing them.

    Raises:
        InputError: unknown names, or an option that would change the result and does not exist here.
    """
    every = known | TIMMS | set(OF_THE_MODEL) | {"input_size"}
    unknown = sorted(set(values) - every)
    if unknown and not ignore_unknown:
        raise InputError(
            f"{source}: no option named {', '.join(map(repr, unknown))}.{did_you_mean(unknown[0], known)} "
            f"{option('ignore-unknown', python='ignore_unknown=True')} trains without."
        )
    model_kwargs = dict(values.get("model_kwargs") or {})
    given = {**{name: model_kwargs[name] for name in UNLESS if name in model_kwargs}, **values}
    refused = [name for name in sorted(UNLESS) if name in given and not _is_off(name, given[name])]
    if refused:
        listed = "; ".join(f"{name}={given[name]!r}: {UNLESS[name][1]}" for name in refused)
        raise InputError(f"{source}: what would change the result and does not exist here: {listed}.")
    is_timms = len(TIMMS & set(values)) >= ENOUGH and not set(values) & (known - SHARED)
    options = dict(DEFAULTS) if is_timms else {}
    for name, value in values.items():
        ours = RENAMED.get(name, name)
        if name == "input_size":
            options |= _of_size(value, model_kwargs, source)
        elif name in OF_THE_MODEL:
            if value is not None:
                model_kwargs[OF_THE_MODEL[name]] = value
        elif name == "torchcompile":  # timm has the backend's name
            options[name] = bool(value)
        elif name == "interpolation":
            options[name] = value or None
        elif ours == "amp":
            options[ours] = bool(values.get("amp") or values.get("native_amp"))
        elif name == "aug_repeats" and isinstance(value, float) and value.is_integer():  # timm's parser makes it 3.0
            options[name] = int(value)
        elif ours in known and (value is not None or not is_timms):
            options[ours] = value
    if is_timms and options.get("lr") is not None:
        options.pop("lr_base")
    if is_timms and not options["dataset"]:
        options["dataset"] = "folder"
    if model_kwargs:
        options["model_kwargs"] = model_kwargs
    return options, _note(values, is_timms, unknown, source)


def _is_off(name: str, value: Any) -> bool:
    """True if an option stands where it changes nothing."""
    return value in OFF or value in UNLESS[name][0]


def _of_size(value: Any, model_kwargs: dict[str, Any], source: str) -> dict[str, Any]:
    """timm's `input_size`, [channel, row, col], as image size here; channels become an argument of the model."""
    if value is None:
        return {}
    if not (isinstance(value, list) and len(value) == 3 and value[1] == value[2]):
        raise InputError(f"{source}: input_size={value!r} must be [channels, side, side]; images are square here.")
    if value[0] != 3:
        model_kwargs["in_chans"] = value[0]
    return {"img_size": value[1]}


def _note(values: Mapping[str, Any], is_timms: bool, unknown: list[str], source: str) -> str:
    parts = []
    if is_timms:
        parts.append(f"{source} is read as arguments of timm's train.py, whose defaults hold for what it leaves out")
    if is_timms and values.get("model") in OF_PAPERS:
        parts.append(f"{values['model']} {OF_PAPERS[values['model']]}")
    if idle := [name for name in sorted(WITHOUT_EFFECT) if values.get(name) not in OFF]:
        parts.append(f"{'' if is_timms else source + ': '}without effect here: {', '.join(idle)}")
    if unknown:
        parts.append(f"{'' if is_timms else source + ': '}left out, since unknown: {', '.join(unknown)}")
    return "; ".join(parts) + "." if parts else ""
