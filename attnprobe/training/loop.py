"""The training loop, in reading order."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn

from attnprobe.core.errors import InputError, WorkError
from attnprobe.core.images import ImageSource
from attnprobe.core.memory import free_memory, is_out_of_memory
from attnprobe.core.text import line, table
from attnprobe.io.progress import progress as progress_bar
from attnprobe.io.ranks import held
from attnprobe.io.run import Run
from attnprobe.training.augment import Augmentation, AugmentConfig, erase
from attnprobe.training.boards import boards
from attnprobe.training.checkpoint import (
    Learner,
    Progress,
    load_checkpoint,
    newest_checkpoint,
    remove_unfinished,
    save_checkpoint,
    save_partial,
)
from attnprobe.training.config import TrainConfig
from attnprobe.training.cosine_regulariser import cosine_penalty, listening
from attnprobe.training.devices import amp_dtype, peak_memory, pick_device
from attnprobe.training.evaluate import evaluate
from attnprobe.training.log import LOG_FIELDS, Waiting, read_log, write_log, write_warning
from attnprobe.training.mix import Mix
from attnprobe.training.objective import classification_loss
from attnprobe.training.optimisation import build_optimizer, build_schedule, freeze
from attnprobe.training.processes import Processes, processes
from attnprobe.training.stopping import StopRequest, stop_requests
from attnprobe.training.token_labels import LabelMaps, token_targets
from attnprobe.training.transforms import train_transform

Watch = Callable[[int, nn.Module, float], str]
"""Called after each epoch with the number of epochs done, the model as it is deployed, and the epoch's seconds."""


@dataclass(frozen=True, slots=True, repr=False)
class TrainResult:
    """What came out: validation accuracy (in [0, 1]) after the last epoch and the best, and the log's rows.

    Attributes:
        warnings: what went wrong on the way, such as a damaged checkpoint; see `Run.warnings`.
    """

    run: Run
    top1: float
    best: float
    best_epoch: int
    log: tuple[Mapping[str, float], ...]
    warnings: tuple[str, ...] = ()

    def facts(self) -> dict[str, object]:
        """What a reader wants to know first, in words."""
        seconds, loss = sum(row["seconds"] for row in self.log), self.log[-1]["train_loss"]
        return {
            "top-1": f"{self.top1:.2%} after {len(self.log)} epochs",
            "best": f"{self.best:.2%} at epoch {self.best_epoch}",
            "training loss": loss,
            "took": f"{seconds:.0f} s",
            **({"warnings": "; ".join(self.warnings)} if self.warnings else {}),
        }

    def __repr__(self) -> str:
        return line(str(self.run.path), self.facts())

    def _repr_html_(self) -> str:
        return table(str(self.run.path), self.facts())


def train(
    model: nn.Module,
    images: ImageSource,
    val_images: ImageSource,
    config: TrainConfig,
    run: Run,
    *,
    config_json: Mapping[str, Any],
    watch: Watch | None = None,
) -> TrainResult:
    """Train `model` on `images`; goes on from the newest checkpoint in `run` if there is one.

    Every epoch ends with a validation, a row of summary.csv and a committed checkpoint; SIGTERM and Ctrl-C commit one
    after the step they come in. A run that was stopped or killed ends, on a CPU, with the same weights and log as one
    that was not. Under torchrun, all processes work on every batch; `config.batch_size` is each one's.

    Args:
        model: any classifier; moved to the device `config.device` names.
        images, val_images: what to train and validate on.
        run: the directory for the log and the checkpoints.
        config_json: timm's config.json of the model, saved beside the weights.
        watch: looks at the model after each epoch; what it returns is shown beside the progress bar.

    Raises:
        InputError: no training image, or labels the model has no class for.
        CheckpointError: there are checkpoints and none is intact, or they are of another model.
        WorkError: the loss is not finite, the disk fails, or another process is lost; run the same command again.
        Stopped: on SIGTERM.
        InUse: another command is at work in `run`.
    """
    with held(run.path), processes(pick_device(config.device)) as group, stop_requests() as stop:
        if config.auto_batch and group.world > 1:
            raise InputError("auto_batch is for one process; with several, set batch_size and grad_accum_steps.")
        pieces = 1
        while True:
            try:
                return _train(model, images, val_images, config, run, config_json, watch, group, stop, pieces)
            except (RuntimeError, MemoryError) as error:
                if not (config.auto_batch and is_out_of_memory(error) and 2 * pieces <= config.batch_size):
                    raise
            pieces *= 2
            model.zero_grad(set_to_none=True)
            free_memory()
            part = math.ceil(config.batch_size / pieces)
            warnings.warn(f"out of memory: going on with {part} images of a batch at a time.", stacklevel=2)


def _train(
    model: Any,
    images: Any,
    val_images: ImageSource,
    config: TrainConfig,
    run: Run,
    config_json: Mapping[str, Any],
    watch: Watch | None,
    group: Processes,
    stop: StopRequest,
    pieces: int,
) -> TrainResult:
    """`pieces`: into how many parts a batch is cut that does not fit into memory."""
    device = group.device
    if len(images) == 0 or not images.class_names:
        raise InputError(f"{images.name} has {len(images)} images and {len(images.class_names)} classes; cannot train.")
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model = model.to(device).to(memory_format=layout)
    freeze(model, config.freeze)
    if config.grad_checkpointing:
        _switch_on_checkpointing(model)
    ema = None
    if config.model_ema:
        ema = ModelEmaV3(model, decay=config.model_ema_decay, use_warmup=config.model_ema_warmup)
    parallel = group.parallel(model, sync_bn=config.sync_bn)

    batch_size = config.batch_size * group.world
    steps_per_epoch = len(images) // batch_size + (len(images) % batch_size >= group.world)
    updates_per_epoch = math.ceil(steps_per_epoch / config.grad_accum_steps)
    optimizer = build_optimizer(model, config, images_per_step=batch_size * config.grad_accum_steps)
    scheduler, epochs = build_schedule(optimizer, config, updates=updates_per_epoch)
    precision = amp_dtype(config, device)
    autocast = torch.autocast(device.type, precision) if precision else nullcontext()
    scaler = torch.amp.GradScaler(device.type, enabled=precision is torch.float16)

    augmenting = AugmentConfig(**{field.name: getattr(config, field.name) for field in fields(AugmentConfig)})
    mix = Mix(augmenting, len(images.class_names)) if config.mixup or config.cutmix or config.cutmix_minmax else None
    if hasattr(images, "augmented"):  # pictures are augmented where they are decoded, at their full size
        by_workers, augment = train_transform(augmenting, images.spec, _label_maps(config, images)), None
    elif config.token_label_data:
        raise InputError(f"token_label_data is for folders of images; {config.dataset} has no files.")
    else:
        by_workers, augment = None, Augmentation(augmenting, images.spec).picture

    if group.is_first:
        remove_unfinished(run)
    group.wait()
    learner = Learner(model, ema.module if ema else model, optimizer, scaler)
    start, damage = newest_checkpoint(run)
    progress = load_checkpoint(start, learner) if start else Progress()
    if start and damage and group.is_first:
        _warn(run, f"{damage}; training went on from {start.name}")
    log = read_log(run)[: progress.epoch]
    if config.auto_batch and progress == Progress():  # where to begin again, should memory run out in this epoch
        save_partial(run, progress, learner, config_json=config_json)

    seen = ""
    regularised = listening(model, config.cos_reg_component + 1) if config.cos_reg_component else nullcontext()
    total, done = epochs * steps_per_epoch, progress.epoch * steps_per_epoch + progress.step
    board = boards(config, run, progress.epoch) if group.is_first else nullcontext(lambda row: None)
    with regularised as listener, board as show_row, progress_bar(config.model, total, done=done) as advance:
        trained = torch.compile(parallel) if config.torchcompile else parallel
        for epoch in range(progress.epoch, epochs):
            if config.early_stop is not None and epoch - progress.best_epoch >= config.early_stop:
                break
            started = time.monotonic()
            model.train()
            scheduler.step(epoch)
            scheduler.step_update(epoch * updates_per_epoch + max(progress.step - 1, 0) // config.grad_accum_steps)
            _seed(config.seed, epoch)
            order = _order(len(images), config.aug_repeats)
            total_loss = torch.tensor(progress.loss, device=device)
            mixing = mix if not 0 < config.mixup_off_epoch <= epoch else None
            source = images
            if by_workers:
                done = progress.step * config.batch_size
                source = images.augmented(by_workers, (config.seed, epoch, group.rank), first=done)
            shares = [
                group.share(order[step * batch_size : (step + 1) * batch_size]) for step in range(steps_per_epoch)
            ]
            remaining = [position for share in shares[progress.step :] for position in share]
            batches = Waiting(source.batches(config.batch_size, device=device, order=remaining))
            for step, batch in enumerate(batches, progress.step):
                update, part = divmod(step, config.grad_accum_steps)
                parts = min(config.grad_accum_steps, steps_per_epoch - update * config.grad_accum_steps)
                update += epoch * updates_per_epoch
                scheduler.step_update(update)
                _seed(config.seed, epoch, step, group.rank)  # all randomness of a step follows from this
                pixels, targets = batch.pixels, batch.labels
                if augment:
                    pixels = augment(pixels)
                if mixing:
                    pixels, targets = mixing(pixels, targets)
                if batch.more:
                    targets = token_targets(*batch.more, len(images.class_names), model.patch_embed.grid_size)
                pixels = erase(pixels, config.reprob, config.remode, config.recount)
                n = min(batch_size, len(images) - step * batch_size)
                last_part = part == parts - 1
                with nullcontext() if last_part else group.without_averaging(parallel):
                    for shown, wanted in _in_pieces(pixels.contiguous(memory_format=layout), targets, pieces):
                        with autocast:
                            loss = classification_loss(trained(shown), wanted, config)
                            if listener:
                                similarity = cosine_penalty(listener.take(), config.cos_reg_dim)
                                loss = loss + config.cos_reg_weight * similarity
                        scaler.scale(loss * (len(shown) * group.world / n / parts)).backward()
                        total_loss += loss.detach() * len(shown)
                if last_part:
                    if config.clip_grad is not None:
                        scaler.unscale_(optimizer)
                        dispatch_clip_grad(model.parameters(), config.clip_grad, mode=config.clip_mode)
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad(set_to_none=True)
                    if ema:
                        ema.update(model, step=update)
                advance(1, f"epoch {epoch + 1}/{epochs}  best {max(progress.best, 0):.1%}  {seen}".rstrip())

                stopping = last_part and (group.world == 1 or update % 10 == 0) and group.any(stop.signal is not None)
                due = last_part and config.recovery_interval and (step + 1) % config.recovery_interval < parts
                if stopping or due:
                    progress.step, progress.loss = step + 1, group.total(total_loss).item() / group.world
                    _require_finite(progress.loss, epoch, run, optimizer)
                    if group.is_first:
                        save_partial(run, progress, learner, config_json=config_json)
                    if stopping:
                        stop.end()

            train_loss = group.total(total_loss).item() / len(images)
            _require_finite(train_loss, epoch, run, optimizer)
            trained_seconds = time.monotonic() - started
            val_loss, top1 = evaluate(
                learner.deployed, val_images, batch_size=2 * config.batch_size, device=device, processes=group
            )
            progress.epoch, progress.step, progress.loss = epoch + 1, 0, 0.0
            if top1 > progress.best:
                progress.best, progress.best_epoch = top1, progress.epoch
            seconds, speed = time.monotonic() - started, len(images) / trained_seconds
            waited, memory = batches.seconds / trained_seconds, peak_memory(device)
            row = (progress.epoch, optimizer.param_groups[0]["lr"], train_loss, val_loss, top1, seconds, speed, waited)
            log.append(dict(zip(LOG_FIELDS, (*row, memory), strict=True)))
            if group.is_first:
                write_log(run, log)
                show_row(log[-1])
                seen = watch(progress.epoch, learner.deployed, seconds) if watch else ""
                save_checkpoint(run, progress, learner, config_json=config_json, keep=config.keep_checkpoints)
            group.wait()
            if group.any(stop.signal is not None) and progress.epoch < epochs:
                stop.end()
    return TrainResult(run, log[-1]["val_top1"], progress.best, progress.best_epoch, tuple(log), run.warnings())


def _warn(run: Run, text: str) -> None:
    """Say it now, and whenever the run is looked at."""
    write_warning(run, text)
    warnings.warn(f"{run.path}: {text}.", stacklevel=2)


def _require_finite(loss: float, epoch: int, run: Run, optimizer: torch.optim.Optimizer) -> None:
    """Raises WorkError before weights that are lost are saved."""
    if math.isfinite(loss):
        return
    kept, lower = run.latest_checkpoint(), optimizer.param_groups[0]["lr"] / 3
    start = f" and, to start from there, --set initial_checkpoint={kept}" if kept else ""
    raise WorkError(
        f"the training loss is {loss} in epoch {epoch + 1}; train into a new folder with --set lr={lower:.2g}{start}. "
        f"Last good checkpoint: {kept or 'none'}."
    )


def _label_maps(config: TrainConfig, images: ImageSource) -> LabelMaps | None:
    if config.token_label_data is None:
        return None
    return LabelMaps(Path(config.token_label_data).expanduser(), images.ids, len(images.class_names))


def _in_pieces(pixels: Tensor, targets: Any, pieces: int) -> Iterator[tuple[Tensor, Any]]:
    """A batch, cut into at most so many parts."""
    if pieces == 1:
        yield pixels, targets
        return
    one = isinstance(targets, Tensor)
    cut = [tensor.chunk(pieces) for tensor in ((targets,) if one else targets)]
    for k, part in enumerate(pixels.chunk(pieces)):
        wanted = tuple(parts[k] for parts in cut)
        yield part, wanted[0] if one else wanted


def _seed(*numbers: int) -> None:
    """Seed every generator PyTorch has from these numbers."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


def _order(n: int, repeats: int) -> list[int]:
    """A random order of n images; with repeated augmentation each comes `repeats` times in a row, n in all."""
    order = torch.randperm(n)
    return (order.repeat_interleave(repeats)[:n] if repeats > 1 else order).tolist()


def _switch_on_checkpointing(model: Any) -> None:
    if not hasattr(model, "set_grad_checkpointing"):
        raise InputError(f"{type(model).__name__} has no gradient checkpointing; leave grad_checkpointing out.")
    model.set_grad_checkpointing()
