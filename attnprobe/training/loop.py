"""The training loop, in reading order: set up; per epoch its steps, a validation, a row of the log, a checkpoint."""

import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from timm.models import model_parameters
from timm.scheduler.scheduler import Scheduler
from timm.utils import ModelEmaV3, dispatch_clip_grad
from torch import Tensor, nn

from attnprobe.core.errors import InputError, WorkError, option
from attnprobe.core.images import ImageSource
from attnprobe.core.memory import free_memory, is_out_of_memory
from attnprobe.core.text import Shown
from attnprobe.io.progress import progress as progress_bar
from attnprobe.io.ranks import held
from attnprobe.io.run import Run
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
from attnprobe.training.inputs import Inputs, Plan, imbalance
from attnprobe.training.log import LOG_FIELDS, read_log, write_log, write_warning
from attnprobe.training.objective import classification_loss
from attnprobe.training.optimisation import base_rate, build_optimizer, build_schedule, freeze
from attnprobe.training.pace import Pace, on_stderr
from attnprobe.training.processes import Processes, StopRequest, processes, stop_requests

Watch = Callable[[int, nn.Module, float], str]
"""Called after each epoch with the number of epochs done, the deployed model, and the epoch's seconds."""


@dataclass(frozen=True, slots=True, repr=False)
class TrainResult(Shown):
    """Result of training: validation accuracy (in [0, 1]) after the last epoch and the best, and the log's rows.

    Attributes:
        warnings: problems on the way, such as a damaged checkpoint; see `Run.warnings`.
    """

    run: Run
    top1: float
    best: float
    best_epoch: int
    log: tuple[Mapping[str, float], ...]
    warnings: tuple[str, ...] = ()

    def facts(self) -> dict[str, object]:
        """The main numbers, by name."""
        seconds, loss = sum(row["seconds"] for row in self.log), self.log[-1]["train_loss"]
        return {
            "top-1": f"{self.top1:.2%} after {len(self.log)} epochs",
            "best": f"{self.best:.2%} at epoch {self.best_epoch}",
            "training loss": loss,
            "took": f"{seconds:.0f} s",
            **({"warnings": "; ".join(self.warnings)} if self.warnings else {}),
        }

    @property
    def _title(self) -> str:
        return str(self.run.path)


@dataclass(frozen=True, slots=True)
class Task:
    """The arguments of `train`."""

    model: Any
    images: Any
    val_images: ImageSource
    config: TrainConfig
    run: Run
    config_json: Mapping[str, Any]
    watch: Watch | None


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
    """Train `model` on `images`, from the newest checkpoint in `run` if there is one.

    Every epoch ends with a validation, a row of summary.csv and a committed checkpoint; SIGTERM and Ctrl-C commit one
    after the update they come in. A run that was stopped or killed ends, on a CPU, with the same weights and log as one
    that was not. Under torchrun, all processes work on every batch; `config.batch_size` is each one's.

    Args:
        model: any classifier; moved to the device `config.device` names.
        images, val_images: the training and the validation images.
        run: the directory for the log and the checkpoints.
        config_json: timm's config.json of the model, saved beside the weights.
        watch: called after each epoch; its text is shown beside the progress bar.

    Raises:
        InputError: no training image, or labels the model has no class for.
        CheckpointError: there are checkpoints and none is intact, or they are of another model.
        WorkError: the loss is not finite, the disk fails, or another process is lost; run the same command again.
        Stopped: on SIGTERM.
        InUse: another command is at work in `run`.
    """
    task = Task(model, images, val_images, config, run, config_json, watch)
    with held(run.path), processes(pick_device(config.device)) as group, stop_requests() as stop:
        if config.auto_batch and group.world > 1:
            raise InputError("auto_batch is for one process; with several, set batch_size and grad_accum_steps.")
        pieces = 1
        while True:
            try:
                return _train(task, group, stop, pieces)
            except (RuntimeError, MemoryError) as error:
                if not (config.auto_batch and is_out_of_memory(error) and 2 * pieces <= config.batch_size):
                    raise
            pieces *= 2
            model.zero_grad(set_to_none=True)
            free_memory()
            part = math.ceil(config.batch_size / pieces)
            normalised = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
            apart = ", each of which batch norm takes for a batch" if normalised else ""
            warnings.warn(f"out of memory: continuing with parts of a batch of {part} images{apart}.", stacklevel=2)


def _train(task: Task, group: Processes, stop: StopRequest, pieces: int) -> TrainResult:
    """Train; `pieces` is the number of parts into which a batch that does not fit into memory is cut."""
    config, images, run, device = task.config, task.images, task.run, group.device
    if len(images) == 0 or not images.class_names:
        raise InputError(f"{images.name} has {len(images)} images and {len(images.class_names)} classes; cannot train.")
    if group.is_first and (remark := imbalance(images)):
        warnings.warn(f"{remark}.", stacklevel=3)
    plan = Plan(len(images), config.batch_size, config.grad_accum_steps, group.world)
    learner = _learner(task, group, plan)
    scheduler, epochs = build_schedule(learner.optimizer, config, updates=plan.updates)
    precision = amp_dtype(config, device)
    autocast = torch.autocast(device.type, precision) if precision else nullcontext()
    parallel = group.parallel(learner.model, sync_bn=config.sync_bn)
    inputs = Inputs(task.model, images, config, group, plan)
    progress = _resumed(task, group, learner)
    log = read_log(run)[: progress.epoch]
    layout = torch.channels_last if config.channels_last else torch.contiguous_format

    text = ""
    regularised = listening(task.model, config.cos_reg_component + 1) if config.cos_reg_component else nullcontext()
    total, done = epochs * plan.steps, progress.epoch * plan.steps + progress.step
    pace = Pace(device, total - done, plan.per_step, on_stderr if group.is_first else None)
    board = boards(config, run, progress.epoch) if group.is_first else nullcontext(lambda row: None)
    with regularised as listener, board as show_row, progress_bar(config.model, total, done=done) as advance:
        trained = torch.compile(parallel) if config.torchcompile else parallel
        for epoch in range(progress.epoch, epochs):
            if config.early_stop is not None and epoch - progress.best_epoch >= config.early_stop:
                break
            started = time.monotonic()
            task.model.train()
            _set_rate(scheduler, epoch, plan, progress.step)
            total_loss = torch.tensor(progress.loss, device=device)
            pace.restart()
            for step, pixels, targets in inputs.epoch(epoch, progress.step):
                n, update, parts, last_part = plan.at(step)
                update += epoch * plan.updates
                scheduler.step_update(update)
                # DDP averages gradients over processes during backward; once per update is enough, so all parts of an
                # update but the last keep their gradients to themselves.
                with nullcontext() if last_part else group.without_averaging(parallel):
                    for shown, wanted in _in_pieces(pixels.contiguous(memory_format=layout), targets, pieces):
                        with autocast:
                            loss = classification_loss(trained(shown), wanted, config)
                            if listener:
                                similarity = cosine_penalty(listener.take(), config.cos_reg_dim)
                                loss = loss + config.cos_reg_weight * similarity if len(shown) else loss
                        # The gradient of the mean over all n images of the step, averaged over the update's steps:
                        # `loss` is a mean over len(shown), and DDP divides by `world`.
                        learner.scaler.scale(loss * (len(shown) * group.world / n / parts)).backward()
                        total_loss += loss.detach() * len(shown)
                if last_part:
                    _update_weights(learner, config, update)
                best = f"best {max(progress.best, 0):.1%}"
                advance(1, f"epoch {epoch + 1}/{epochs}  {best}  {pace.step()}  {text}".rstrip())

                # Checkpoints fall between updates, never between the parts of one, whose gradients are not saved.
                # Asking the other processes costs an all-reduce, so with several it is done every tenth update.
                stopping = last_part and (group.world == 1 or update % 10 == 0) and group.any(stop.signal is not None)
                due = last_part and config.recovery_interval and (step + 1) % config.recovery_interval < parts
                if stopping or due:
                    progress.step, progress.loss = step + 1, group.total(total_loss).item() / group.world
                    _require_finite(progress.loss, epoch, run, learner.optimizer)
                    if group.is_first:
                        save_partial(run, progress, learner, config_json=task.config_json)
                    if stopping:
                        stop.end()

            train_loss = group.total(total_loss).item() / len(images)
            _require_finite(train_loss, epoch, run, learner.optimizer)
            batch_size = math.ceil(2 * config.batch_size / pieces)  # without gradients there is room for twice as many
            row = _validated(task, group, learner, progress, batch_size, train_loss, started, inputs.waited)
            log.append(row)
            if group.is_first:
                # The checkpoint comes last: once it is there, the epoch is not done again, so its row must be, too.
                write_log(run, log)
                show_row(row)
                text = task.watch(progress.epoch, learner.deployed, row["seconds"]) if task.watch else ""
                save_checkpoint(run, progress, learner, config_json=task.config_json, keep=config.keep_checkpoints)
            group.wait()
            if group.any(stop.signal is not None) and progress.epoch < epochs:
                stop.end()
    return TrainResult(run, log[-1]["val_top1"], progress.best, progress.best_epoch, tuple(log), run.warnings())


def _learner(task: Task, group: Processes, plan: Plan) -> Learner:
    """The model on its device, its moving average, optimiser and gradient scaler."""
    config, model = task.config, task.model
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(group.device).to(memory_format=layout)
    freeze(model, config.freeze)
    if config.grad_checkpointing:
        if not hasattr(model, "set_grad_checkpointing"):
            raise InputError(f"{type(model).__name__} has no gradient checkpointing; leave grad_checkpointing out.")
        model.set_grad_checkpointing()
    ema = None
    if config.model_ema:
        ema = ModelEmaV3(model, decay=config.model_ema_decay, use_warmup=config.model_ema_warmup)
    optimizer = build_optimizer(model, config, images_per_step=plan.per_step * config.grad_accum_steps)
    float16 = amp_dtype(config, group.device) is torch.float16
    return Learner(model, ema, optimizer, torch.amp.GradScaler(group.device.type, enabled=float16))


def _resumed(task: Task, group: Processes, learner: Learner) -> Progress:
    """Load the newest intact checkpoint, if there is one, into `learner`; how far it had come."""
    run = task.run
    if group.is_first:
        remove_unfinished(run)
    group.wait()
    start, damage = newest_checkpoint(run)
    progress = load_checkpoint(start, learner) if start else Progress()
    if start and damage and group.is_first:
        text = f"{damage}; training resumed from {start.name}"
        write_warning(run, text)
        warnings.warn(f"{run.path}: {text}.", stacklevel=2)
    if task.config.auto_batch and progress == Progress():  # where to begin again, should memory run out in this epoch
        save_partial(run, progress, learner, config_json=task.config_json)
    return progress


def _set_rate(scheduler: Scheduler, epoch: int, plan: Plan, step: int) -> None:
    """Set the learning rate as it was before `step` of the epoch; schedules per epoch ignore the second call."""
    scheduler.step(epoch)
    scheduler.step_update(epoch * plan.updates + max(step - 1, 0) // plan.accumulate)


def _update_weights(learner: Learner, config: TrainConfig, update: int) -> None:
    """One step of the optimiser with the gradients that have been accumulated, and of the moving average."""
    optimizer, scaler = learner.optimizer, learner.scaler
    if config.clip_grad is not None:
        scaler.unscale_(optimizer)  # before clipping: the limit is for gradients of the loss, not of the scaled loss
        clipped = model_parameters(learner.model, exclude_head=config.clip_mode == "agc")  # as in timm's train.py
        dispatch_clip_grad(clipped, config.clip_grad, mode=config.clip_mode)
    scaler.step(optimizer)  # unscales, if clipping has not, and skips the step if a gradient overflowed float16
    scaler.update()  # after the step, which still needs the scale that the gradients have
    optimizer.zero_grad(set_to_none=True)  # after the last part of an update only: parts add their gradients up
    if learner.ema:
        # last, to average the weights that the step has made; timm counts updates from 1: the first is copied
        learner.ema.update(learner.model, step=update + 1)


def _validated(
    task: Task,
    group: Processes,
    learner: Learner,
    progress: Progress,
    batch_size: int,
    loss: float,
    started: float,
    waited: float,
) -> dict[str, float]:
    """Validate the deployed model and move `progress` to the next epoch; the epoch's row of the log.

    Args:
        loss: mean training loss of the epoch.
        started: when the epoch began; `waited`: its seconds of waiting for images.
    """
    config, training = task.config, time.monotonic() - started
    scores = evaluate(
        learner.deployed,
        task.val_images,
        batch_size=batch_size,
        device=group.device,
        processes=group,
        amp=amp_dtype(config, group.device),
    )
    top1 = scores.top1
    progress.epoch, progress.step, progress.loss = progress.epoch + 1, 0, 0.0
    if top1 > progress.best:
        progress.best, progress.best_epoch = top1, progress.epoch
    seconds, speed = time.monotonic() - started, len(task.images) / training
    row = (progress.epoch, base_rate(learner.optimizer), loss, scores.loss, top1, seconds, speed)
    return dict(zip(LOG_FIELDS, (*row, waited / training, peak_memory(group.device)), strict=True))


def _require_finite(loss: float, epoch: int, run: Run, optimizer: torch.optim.Optimizer) -> None:
    """Raise WorkError if the loss is not finite, before useless weights are saved."""
    if math.isfinite(loss):
        return
    kept, lower = run.latest_checkpoint(), base_rate(optimizer) / 3
    there, rate = f"initial_checkpoint={kept}", f"lr={lower:.2g}"
    start = f" and, to start from there, {option('set', there, python=there)}" if kept else ""
    raise WorkError(
        f"the training loss is {loss} in epoch {epoch + 1}; train into a new folder with "
        f"{option('set', rate, python=rate)}{start}. Last good checkpoint: {kept or 'none'}."
    )


def _in_pieces(pixels: Tensor, targets: Any, pieces: int) -> Iterator[tuple[Tensor, Any]]:
    """A batch in at most `pieces` parts."""
    if pieces == 1:
        yield pixels, targets
        return
    one = isinstance(targets, Tensor)
    cut = [tensor.chunk(pieces) for tensor in ((targets,) if one else targets)]
    for k, part in enumerate(pixels.chunk(pieces)):
        wanted = tuple(parts[k] for parts in cut)
        yield part, wanted[0] if one else wanted
