"""The training loop, in reading order."""

import csv
import io
import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn

from attnprobe.core import fs
from attnprobe.core.errors import InputError, WorkError
from attnprobe.core.images import ImageSource
from attnprobe.core.progress import progress as progress_bar
from attnprobe.core.run import Run
from attnprobe.training.augment import Augmentation, AugmentConfig
from attnprobe.training.checkpoint import Progress, load_checkpoint, remove_unfinished, save_checkpoint
from attnprobe.training.config import TrainConfig
from attnprobe.training.cosine_regulariser import cosine_penalty, listening
from attnprobe.training.mix import Mix
from attnprobe.training.objective import classification_loss
from attnprobe.training.optimisation import build_optimizer, build_schedule, freeze
from attnprobe.training.transforms import train_transform

LOG_FIELDS: tuple[str, ...] = ("epoch", "lr", "train_loss", "val_loss", "val_top1", "seconds")


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What came out: validation accuracy (in [0, 1]) after the last epoch and the best, and the log's rows."""

    run: Run
    top1: float
    best: float
    best_epoch: int
    log: tuple[Mapping[str, float], ...]


def train(
    model: nn.Module,
    images: ImageSource,
    val_images: ImageSource,
    config: TrainConfig,
    run: Run,
    *,
    config_json: Mapping[str, Any],
    watch: Callable[[int, nn.Module, float], str] | None = None,
) -> TrainResult:
    """Train `model` on `images`; goes on from the newest checkpoint in `run` if there is one.

    Every epoch ends with a validation, a row of log.csv and a committed checkpoint, so a killed run loses at most
    one epoch and, on a CPU, ends with the same weights as one that was never stopped.

    Args:
        model: any classifier; moved to the device `config.device` names.
        images, val_images: what to train and validate on.
        run: the directory for the log and the checkpoints.
        config_json: timm's config.json of the model, saved beside the weights.
        watch: called after each epoch with the number of epochs done, the model as it is deployed, and the seconds the
            epoch took; what it returns is shown beside the progress bar.

    Raises:
        InputError: no training image, or labels the model has no class for.
        WorkError: the loss is not finite, or the disk fails; the last good checkpoint is named.
    """
    device = pick_device(config.device)
    if len(images) == 0 or not images.class_names:
        raise InputError(f"{images.name} has {len(images)} images and {len(images.class_names)} classes; cannot train.")
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(device).to(memory_format=layout)  # type: ignore[call-overload]
    freeze(model, config.freeze)
    steps_per_epoch = math.ceil(len(images) / config.batch_size)
    updates_per_epoch = math.ceil(steps_per_epoch / config.grad_accum_steps)
    optimizer = build_optimizer(model, config, images_per_step=config.batch_size * config.grad_accum_steps)
    scheduler, epochs = build_schedule(optimizer, config, updates=updates_per_epoch)
    average = {"decay": config.model_ema_decay, "use_warmup": config.model_ema_warmup}
    ema = ModelEmaV3(model, **average) if config.model_ema else None
    deployed = ema.module if ema else model
    amp_dtype = _amp_dtype(config, device)
    autocast = torch.autocast(device.type, amp_dtype) if amp_dtype else nullcontext()
    scaler = torch.amp.GradScaler(device.type, enabled=amp_dtype is torch.float16)
    augmenting = AugmentConfig(**{field.name: getattr(config, field.name) for field in fields(AugmentConfig)})
    augmentation = Augmentation(augmenting, images.spec)
    mix = Mix(augmenting, len(images.class_names)) if config.mixup or config.cutmix or config.cutmix_minmax else None
    by_workers = train_transform(augmenting, images.spec) if hasattr(images, "augmented") else None
    if config.grad_checkpointing:
        _switch_on_checkpointing(model)

    with fs.as_work_error(f"starting the run in {run.path}"):
        fs.make_folder(run.path)
    remove_unfinished(run)
    resumed = load_checkpoint(run, model=model, deployed=deployed, optimizer=optimizer, scaler=scaler)
    progress = resumed or Progress()
    log = read_log(run)[: progress.epoch]

    seen = ""
    regularised = listening(model, config.cos_reg_component + 1) if config.cos_reg_component else nullcontext()
    total_steps, done = epochs * steps_per_epoch, progress.epoch * steps_per_epoch
    with regularised as listener, progress_bar(config.model, total_steps, done=done) as advance:
        trained = torch.compile(model) if config.torchcompile else model
        for epoch in range(progress.epoch, epochs):
            if config.early_stop is not None and epoch - progress.best_epoch >= config.early_stop:
                break
            started = time.monotonic()
            torch.manual_seed(config.seed + 1_000_003 * (epoch + 1))  # all randomness of an epoch follows from this
            model.train()
            scheduler.step(epoch)
            total_loss = torch.zeros((), device=device)
            mixing = mix if not 0 < config.mixup_off_epoch <= epoch else None
            source: Any = images
            if by_workers:  # pictures are augmented where they are decoded, at their full size
                source = source.augmented(by_workers, (config.seed, epoch))
            order = _order(len(images), config.aug_repeats)
            for step, batch in enumerate(source.batches(config.batch_size, device=device, order=order)):
                update, part = divmod(step, config.grad_accum_steps)
                parts = min(config.grad_accum_steps, steps_per_epoch - update * config.grad_accum_steps)
                update += epoch * updates_per_epoch
                scheduler.step_update(update)
                pixels, targets = batch.pixels, batch.labels
                if not by_workers:
                    pixels = augmentation.picture(pixels)
                if mixing:
                    pixels, targets = mixing(pixels, targets)
                pixels = augmentation.erase(pixels).contiguous(memory_format=layout)
                with autocast:
                    loss = classification_loss(trained(pixels), targets, config)
                    if listener:
                        loss = loss + config.cos_reg_weight * cosine_penalty(listener.take(), config.cos_reg_dim)
                scaler.scale(loss / parts).backward()
                if part == parts - 1:
                    if config.clip_grad is not None:
                        scaler.unscale_(optimizer)
                        dispatch_clip_grad(model.parameters(), config.clip_grad, mode=config.clip_mode)
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad(set_to_none=True)
                    if ema:
                        ema.update(model, step=update)
                total_loss += loss.detach() * len(batch.ids)
                advance(1, f"epoch {epoch + 1}/{epochs}  best {max(progress.best, 0):.1%}  {seen}".rstrip())

            train_loss = total_loss.item() / len(images)
            if not math.isfinite(train_loss):
                kept, lower = run.latest_checkpoint(), optimizer.param_groups[0]["lr"] / 3
                raise WorkError(
                    f"the training loss is {train_loss} in epoch {epoch + 1}; lower --set lr={lower:.2g}. "
                    f"Last good checkpoint: {kept or 'none'}."
                )
            val_loss, top1 = evaluate(deployed, val_images, batch_size=config.batch_size * 2, device=device)
            progress.epoch = epoch + 1
            if top1 > progress.best:
                progress.best, progress.best_epoch = top1, progress.epoch
            lr = optimizer.param_groups[0]["lr"]
            row = (progress.epoch, lr, train_loss, val_loss, top1, time.monotonic() - started)
            log.append(dict(zip(LOG_FIELDS, row, strict=True)))
            write_log(run, log)
            seen = watch(progress.epoch, deployed, time.monotonic() - started) if watch else ""
            save_checkpoint(
                run,
                progress,
                model=model,
                deployed=deployed,
                optimizer=optimizer,
                scaler=scaler,
                config_json=config_json,
                keep=config.keep_checkpoints,
            )
    return TrainResult(run, log[-1]["val_top1"], progress.best, progress.best_epoch, tuple(log))


@torch.inference_mode()
def evaluate(model: nn.Module, images: ImageSource, *, batch_size: int, device: torch.device) -> tuple[float, float]:
    """Mean cross-entropy (nats) and top-1 accuracy (in [0, 1]) of `model` on `images`."""
    model.eval()
    loss = torch.zeros((), device=device, dtype=torch.float64)
    correct = torch.zeros((), device=device, dtype=torch.int64)
    n = 0
    for batch in images.batches(batch_size, device=device):
        logits: Tensor = model(batch.pixels).float()
        loss += F.cross_entropy(logits, batch.labels, reduction="sum")
        correct += (logits.argmax(-1) == batch.labels).sum()
        n += len(batch.ids)
    if n == 0:
        raise InputError(f"{images.name} has no image to validate on.")
    return loss.item() / n, correct.item() / n


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes a GPU if there is one.

    Raises:
        InputError: this machine has no such device.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"no device {name!r} here ({str(error).splitlines()[0]}); try --device cpu.") from error
    return device


def _amp_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """What autocast computes in; None for float32, as always on a CPU."""
    if not config.amp or device.type == "cpu":
        return None
    if config.amp_dtype == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return torch.float16
    return getattr(torch, config.amp_dtype)


def _order(n: int, repeats: int) -> list[int]:
    """A random order of n images; with repeated augmentation each comes `repeats` times in a row, n in all."""
    order = torch.randperm(n)
    return (order.repeat_interleave(repeats)[:n] if repeats > 1 else order).tolist()


def _switch_on_checkpointing(model: Any) -> None:
    if not hasattr(model, "set_grad_checkpointing"):
        raise InputError(f"{type(model).__name__} has no gradient checkpointing; leave grad_checkpointing out.")
    model.set_grad_checkpointing()


def read_log(run: Run) -> list[dict[str, float]]:
    """The rows of log.csv; none if there is no log yet."""
    if not run.log.exists():
        return []
    with run.log.open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    return [{**row, "epoch": int(row["epoch"])} for row in rows]


def write_log(run: Run, rows: list[dict[str, float]]) -> None:
    """Replace log.csv by these rows, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(LOG_FIELDS), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    with fs.as_work_error("writing log.csv"):
        fs.write_file(run.log, text.getvalue().encode(), overwrite=True)
