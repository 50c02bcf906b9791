"""Every option of timm's train.py (0.9.16 to 1.0.31) at its default, and what becomes of it here. As a table:

python -m tests.training.timm_options
"""

from dataclasses import fields

from attnprobe.training import TrainConfig
from attnprobe.training.timm_args import BESIDE, OF_THE_MODEL, RENAMED, UNLESS, WITHOUT_EFFECT

KNOWN = {field.name for field in fields(TrainConfig)}

OPTIONS = {
    "aa": None, "amp": False, "amp_dtype": "float16", "amp_impl": "native", "aot_autograd": False, "aug_repeats": 0,
    "aug_splits": 0, "batch_size": 128, "bce_loss": False, "bce_pos_weight": None, "bce_sum": False,
    "bce_target_thresh": None, "bn_eps": None, "bn_momentum": None, "channels_last": False, "checkpoint_hist": 10,
    "class_map": "", "clip_grad": None, "clip_mode": "norm", "color_jitter": 0.4, "color_jitter_prob": None,
    "cooldown_epochs": 0, "crop_pct": None, "cutmix": 0.0, "cutmix_minmax": None, "data": None, "data_dir": None,
    "dataset": "", "dataset_download": False, "dataset_trust_remote_code": False, "decay_epochs": 90,
    "decay_milestones": [90, 180, 270], "decay_rate": 0.1, "device": "cuda", "device_modules": None,
    "dist_bn": "reduce", "drop": 0.0, "drop_block": None, "drop_connect": None, "drop_path": None,
    "epoch_repeats": 0.0, "epochs": 300, "eval_metric": "top1", "experiment": "", "fast_norm": False, "fuser": "",
    "gaussian_blur_prob": None, "gp": None, "grad_accum_steps": 1, "grad_checkpointing": False,
    "grayscale_prob": None, "head_init_bias": None, "head_init_scale": None, "hflip": 0.5, "img_size": None,
    "in_chans": None, "initial_checkpoint": "", "input_img_mode": None, "input_key": None, "input_size": None,
    "interpolation": "", "jsd_loss": False, "kd_model_name": None, "layer_decay": None,
    "layer_decay_min_scale": 0, "layer_decay_no_opt_scale": None, "local_rank": 0, "log_interval": 50,
    "log_wandb": False, "lr": None, "lr_base": 0.1, "lr_base_scale": "", "lr_base_size": 256, "lr_cycle_decay": 0.5,
    "lr_cycle_limit": 1, "lr_cycle_mul": 1.0, "lr_k_decay": 1.0, "lr_noise": None, "lr_noise_pct": 0.67,
    "lr_noise_std": 1.0, "mean": None, "min_lr": 0, "mixup": 0.0, "mixup_mode": "batch", "mixup_off_epoch": 0,
    "mixup_prob": 1.0, "mixup_switch_prob": 0.5, "model": "resnet50", "model_dtype": None, "model_ema": False,
    "model_ema_decay": 0.9998, "model_ema_force_cpu": False, "model_ema_warmup": False, "model_kwargs": {},
    "momentum": 0.9, "naflex_loader": False, "naflex_loss_scale": "linear", "naflex_max_seq_len": 576,
    "naflex_patch_size_probs": None, "naflex_patch_sizes": None, "naflex_train_seq_lens": [128, 256, 576, 784, 1024],
    "no_aug": False, "no_ddp_bb": False, "no_prefetcher": False, "no_resume_opt": False, "num_classes": None,
    "opt": "sgd", "opt_betas": None, "opt_eps": None, "opt_kwargs": {}, "output": "", "patience_epochs": 10,
    "pin_mem": False, "pretrained": False, "pretrained_path": None, "ratio": [0.75, 1.3333333333333333],
    "recount": 1, "recovery_interval": 0, "remode": "pixel", "reprob": 0.0, "resplit": False, "resume": "",
    "save_images": False, "scale": [0.08, 1.0], "sched": "cosine", "sched_on_updates": False, "seed": 42,
    "smoothing": 0.1, "split_bn": False, "start_epoch": None, "std": None, "sync_bn": False,
    "synchronize_step": False, "target_key": None, "torchcompile": None, "torchcompile_mode": None,
    "torchscript": False, "train_crop_mode": None, "train_interpolation": "random", "train_split": "train", "tta": 0,
    "use_multi_epochs_loader": False, "val_split": "validation", "validation_batch_size": None, "vflip": 0.0,
    "wandb_project": None, "wandb_resume_id": "", "wandb_tags": [], "warmup_epochs": 5, "warmup_lr": 1e-05,
    "warmup_prefix": False, "weight_decay": 2e-05, "worker_seeding": "all", "workers": 4,
}  # fmt: skip


OF_PAPERS = ("annealing_weight", "backup", "cls_weight", "cos_reg_component", "dense_avg_pool", "dense_weight",
             "finetune", "mix_token", "native_amp", "post_weight_init", "relabel", "relabel_data", "relabel_size",
             "return_dense", "sam_ratio", "sam_rho", "sin_pe", "use_lmdb", "use_repeated_aug",
             "validation_batch_size_multiplier")  # fmt: skip
"""Names in the files and parsers of DeepViT, Refiner and structured initialisation that are not timm's."""


def what_becomes_of(name: str) -> str:
    """Every way in which an option is dealt with; one of timm's must have exactly one."""
    ways = {
        "honoured": name in KNOWN and name not in RENAMED,
        f"honoured as {RENAMED.get(name)}": name in RENAMED,
        f"argument of the model: {OF_THE_MODEL.get(name)}": name in OF_THE_MODEL,
        "honoured as img_size and in_chans": name == "input_size",
        "without effect, listed in a note": name in WITHOUT_EFFECT,
        f"acts only beside {BESIDE.get(name)}, which is refused": name in BESIDE,
        f"refused by name unless off: {UNLESS[name][1] if name in UNLESS else ''}": name in UNLESS,
    }
    return " AND ".join(way for way, holds in ways.items() if holds) or "NOTHING"


if __name__ == "__main__":
    print("| option | timm's default | here |\n| --- | --- | --- |")
    for option, default in OPTIONS.items():
        print(f"| `{option}` | `{default!r}` | {what_becomes_of(option)} |")
