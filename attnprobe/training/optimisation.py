"""The optimiser and the schedule of the learning rate, built by timm."""

import math
from fnmatch import fnmatch
from typing import Any

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from attnprobe.core.errors import InputError, did_you_mean
from attnprobe.training.config import TrainConfig

DEFAULT_LR = 1e-3


def peak_lr(config: TrainConfig, images_per_step: int) -> float:
    """The peak learning rate: `lr`, or `lr_base` scaled from `lr_base_size` images per step to ours, as in timm."""
    if config.lr is not None:
        return config.lr
    if config.lr_base is None:
        return DEFAULT_LR
    adaptive = any(part in config.opt.lower() for part in ("ada", "lamb"))
    growth = images_per_step / config.lr_base_size
    return config.lr_base * (
        growth**0.5 if (config.lr_base_scale or ("sqrt" if adaptive else "")) == "sqrt" else growth
    )


def freeze(model: nn.Module, patterns: tuple[str, ...]) -> None:
    """Switch gradients off for the parameters whose names match one of the shell patterns.

    Raises:
        InputError: a pattern matches none, or all are frozen.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not any(fnmatch(name, pattern) for name in names):
            raise InputError(f"freeze: no parameter matches {pattern!r}.{did_you_mean(pattern, names)}")
    for name, parameter in model.named_parameters():
        if any(fnmatch(name, pattern) for pattern in patterns):
            parameter.requires_grad_(False)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"freeze={list(patterns)} freezes every parameter; there is nothing left to train.")


def build_optimizer(model: nn.Module, config: TrainConfig, *, images_per_step: int) -> torch.optim.Optimizer:
    """timm's optimiser of this name.

    Raises:
        InputError: timm does not know it, or it does not take one of the options.
    """
    more: dict[str, Any] = {} if config.opt_eps is None else {"eps": config.opt_eps}
    more |= {} if config.opt_betas is None else {"betas": config.opt_betas}
    try:
        return create_optimizer_v2(
            model,
            opt=config.opt,
            lr=peak_lr(config, images_per_step),
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            layer_decay=config.layer_decay,
            **more,
        )
    except (TypeError, ValueError, AssertionError) as error:
        raise InputError(f"opt={config.opt!r} cannot be built: {str(error).splitlines()[0]}") from error


def build_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, *, updates: int) -> tuple[Scheduler, int]:
    """timm's schedule and the number of epochs it lasts, cool-down included.

    Args:
        updates: number of updates of the weights per epoch.

    Raises:
        InputError: timm does not know the schedule.
    """
    sched = "none" if config.sched == "plateau" else config.sched  # whose rates depend on validation
    try:
        scheduler, epochs = create_scheduler_v2(
            optimizer,
            sched=sched,
            num_epochs=config.epochs,
            cooldown_epochs=config.cooldown_epochs,
            decay_epochs=config.decay_epochs,
            decay_rate=config.decay_rate,
            decay_milestones=list(config.decay_milestones),
            warmup_prefix=config.warmup_prefix,
            k_decay=config.lr_k_decay,
            cycle_mul=config.lr_cycle_mul,
            cycle_decay=config.lr_cycle_decay,
            cycle_limit=config.lr_cycle_limit,
            warmup_epochs=config.warmup_epochs,  # pyright: ignore[reportArgumentType]  timm takes fractions, too
            warmup_lr=config.warmup_lr,
            min_lr=config.min_lr,
            step_on_epochs=not config.sched_on_updates,
            updates_per_epoch=updates,
        )
    except (AssertionError, ValueError, KeyError) as error:
        raise InputError(f"sched={config.sched!r} cannot be built: {error}") from error
    if scheduler is None:
        raise InputError(
            f"no schedule {config.sched!r} here; use cosine, step, tanh, poly or multistep. For a constant rate: "
            "sched=cosine with min_lr equal to lr."
        )
    return scheduler, math.ceil(epochs)


def base_rate(optimizer: torch.optim.Optimizer) -> float:
    """The learning rate before layer decay, which scales it from group to group."""
    group = optimizer.param_groups[0]
    return group["lr"] / group.get("lr_scale", 1.0)
