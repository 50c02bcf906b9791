"""Pruning: a smaller checkpoint without some blocks and heads, its accuracy and its speed-up."""

import time
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from attnprobe.core.accuracy import accuracy_difference, accuracy_interval
from attnprobe.core.errors import InputError, option
from attnprobe.core.spec import ImageOptions
from attnprobe.io import fs
from attnprobe.io.progress import Advance, progress, silent
from attnprobe.io.reference import UserImages
from attnprobe.io.run import Run
from attnprobe.models import load_model
from attnprobe.models.parts import Removal, Smaller
from attnprobe.models.prune import smaller_model, timm_files
from attnprobe.reports.removal import measure_text
from attnprobe.workflows.train import train
from attnprobe.workflows.trial import Trial, open_trial, run_images

ROUNDS = 9
"""Times each model runs, in turn with the other; the speed-up is the median ratio."""


@dataclass(frozen=True, slots=True, eq=False)
class Pruned:
    """Result of pruning: the new checkpoint, and accuracy, size and speed before and after.

    Attributes:
        path: the folder of the smaller checkpoint.
        parameters: before and after.
        right: [judging image], bool: which images are classified correctly before, after, and after fine-tuning if
            there was some.
        n_choosing: number of other images, which chose what to remove and the epoch of fine-tuning.
        speed_up: time of the whole model over that of the smaller one, `spread` the middle half of the rounds;
            process CPU time on a CPU, wall time of the device otherwise.
        measure: what counts as correct: "top-1", or "20-NN" of a model without a head.
        data: name of the images, and `data_dir` where they are, if that was said.
    """

    path: Path
    parameters: tuple[int, int]
    right: tuple[np.ndarray, ...]
    n_choosing: int
    speed_up: float
    spread: tuple[float, float]
    measure: str = "top-1"
    data: str | None = None
    data_dir: Path | None = None

    def __str__(self) -> str:
        before, after = self.parameters
        lines = [f"parameters  {before:,} -> {after:,} ({after / before:.1%})",
                 f"speed       {self.speed_up:.2f}x (middle half of {ROUNDS} rounds {self.spread[0]:.2f}–"
                 f"{self.spread[1]:.2f})"]  # fmt: skip
        for words, right in zip(("before", "after", "fine-tuned"), self.right, strict=False):
            low, high = accuracy_interval(int(right.sum()), len(right))
            share = f"{right.mean():.2%} ({low:.2%}–{high:.2%}, {len(right)} images)"
            line = f"{words:10}  {measure_text(self.measure)} {share}"
            if words != "before":
                gained, low, high = accuracy_difference(self.right[0], right)
                line += f", {gained:+.2%} ({low:+.2%} to {high:+.2%}) on the same images"
            lines.append(line)
        epoch = " and the epoch of fine-tuning" if len(self.right) > 2 else ""
        lines.append(f"{self.n_choosing} other images are for choosing what to remove{epoch}.")
        return "\n".join(lines)


def prune(
    ref: Path | str | nn.Module,
    out: Path,
    *,
    blocks: Sequence[int] = (),
    attention: Sequence[int] = (),
    heads: Mapping[int, Sequence[int]] | None = None,
    finetune_epochs: int = 0,
    settings: Mapping[str, Any] | None = None,
    **where: Any,
) -> Pruned:
    """Write a checkpoint without these blocks and heads, and measure its accuracy and speed.

    Accuracy is measured on the images that did not choose in `verify_drops`, if that was called with the same `where`.

    Args:
        ref: a run, a checkpoint, the name of a model, or a model.
        out: a new folder, in timm's `local-dir:` layout, or that of transformers for a model of theirs; with
            fine-tuning also the run `out`/finetuning.
        blocks: from 1.
        attention: blocks, from 1, that keep their MLP and lose their attention branch.
        heads: {block: heads}, both from 1, as in the report on the whole model.
        finetune_epochs: epochs of training afterwards by the run's recipe, without warm-up and at a tenth of its
            learning rate, since the weights are nearly right. The weights of the epoch that is best on the choosing
            images are written.
        settings: options of the fine-tuning that replace the recipe's; its images are those of `where`, if named.
        where: images and device, options of `open_trial`.

    Raises:
        InputError: the model cannot be pruned so (see `smaller_model`); nothing to remove; fine-tuning without
            a run; `out` exists.
        WorkError: the disk is full or fails.
    """
    removal = Removal(blocks, attention, heads or {})
    if not (removal.blocks or removal.attention or removal.heads):
        raise InputError(
            f"nothing to remove; name {option('blocks', '12,14', python='blocks=[12, 14]')}, "
            f"{option('attention', '10', python='attention=[10]')} or "
            f"{option('heads', '9:3,9:5', python='heads={9: [3, 5]}')}."
        )
    if (out / "config.json").exists():
        raise InputError(f"{out} holds a model; choose another folder.")
    if Run(out).config.exists():
        raise InputError(f"{out} is a run; choose another folder, such as {out}-smaller.")
    if finetune_epochs < 0:
        raise InputError(f"finetune_epochs {finetune_epochs} must be 0 or more.")
    trial = open_trial(ref, **where)
    if finetune_epochs and not trial.recipe:
        left_out = option("finetune-epochs")
        raise InputError(f"{ref} is no run, so there is no recipe to train on with; leave {left_out} out.")
    chosen = ImageOptions(**where).preparation
    smaller = smaller_model(_prepared_by(trial.model, chosen), removal, trial.facts.model, trial.facts.options)
    rebuilt, run = smaller.module, Path(str(ref))
    named, folder = run_images(run, trial.recipe, UserImages(where.get("data"), where.get("data_dir")))
    with progress(f"prune {trial.facts.model}", 2 + ROUNDS) as advance:
        right = [_judged(trial, model, advance) for model in (trial.model, rebuilt)]
        speed_up, spread = _speed_up(trial, rebuilt, advance)
    if finetune_epochs:
        _write(out / "start", smaller)
        changed = {"dataset": named, "data_dir": folder and str(folder), **(settings or {})}
        rebuilt = _finetuned(run, trial, smaller, out, finetune_epochs, changed)
        smaller = timm_files(rebuilt, smaller.name, smaller.options)
        right.append(_judged(trial, rebuilt))
    _write(out, smaller)
    parameters = tuple(sum(p.numel() for p in model.parameters()) for model in (trial.model, rebuilt))
    n_choosing = int(trial.chooses.sum())
    return Pruned(
        out, (parameters[0], parameters[1]), tuple(right), n_choosing, speed_up, spread, trial.measure, named, folder
    )


def _prepared_by(model: Any, chosen: Mapping[str, Any]) -> Any:
    """The model, whose files are to say how the user prepared its images: its accuracy holds for no others."""
    if not chosen or not hasattr(model, "pretrained_cfg"):
        return model
    same = copy(model)
    same.pretrained_cfg = {**model.pretrained_cfg, **chosen}
    return same


def numbers_of(text: str) -> tuple[int, ...]:
    """`"12,14"` -> (12, 14).

    Raises:
        InputError: it is not of this form.
    """
    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError as error:
        raise InputError(f"{text!r} must be numbers such as 12,14, counted from 1.") from error


def heads_of(text: str) -> dict[int, tuple[int, ...]]:
    """`"9:3,9:5"` -> {9: (3, 5)}.

    Raises:
        InputError: it is not of this form.
    """
    found: dict[int, tuple[int, ...]] = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        block, colon, head = part.partition(":")
        if not (colon and block.strip().isdecimal() and head.strip().isdecimal()):
            raise InputError(f"{part!r} must be BLOCK:HEAD, both counted from 1, as in 9:3,9:5.")
        found[int(block)] = (*found.get(int(block), ()), int(head))
    return found


def pairs_of(text: str) -> list[tuple[int, int]]:
    """`"9:3,9:5"` -> [(9, 3), (9, 5)]; errors as in `heads_of`."""
    return [(block, head) for block, its in heads_of(text).items() for head in its]


def _judged(trial: Trial, model: nn.Module, advance: Advance = silent) -> np.ndarray:
    """[judging image], bool: which images the model classifies correctly."""
    right = trial.answers(model)[0][~trial.chooses]
    advance()
    return right


def _finetuned(ref: Path, trial: Trial, smaller: Smaller, out: Path, epochs: int, settings: Mapping[str, Any]) -> Any:
    """Fine-tune the model in `out`/start by the recipe of the run `ref`; returns its weights at the best epoch.

    Best on the choosing images: the loop's own best is on all validation images, which include the judging ones.
    """
    kwargs = {key: value for key, value in smaller.options.items() if key != "num_classes"}
    rates = ("lr", "lr_base", "warmup_lr", "min_lr")
    slower = {rate: trial.recipe[rate] / 10 for rate in rates if trial.recipe.get(rate) is not None}
    changed = {"model": smaller.name, "model_kwargs": kwargs, "img_size": None,
               "initial_checkpoint": str(out / "start"), "epochs": epochs, "warmup_epochs": 0, "cooldown_epochs": 0,
               "probe_every": 0, "keep_checkpoints": epochs, **slower}  # fmt: skip
    result = train(Run.of(ref).config, out / "finetuning", settings={**changed, **settings})
    models = (load_model(result.run.checkpoint(epoch)) for epoch in result.run.epochs())
    return max(models, key=lambda model: int(trial.answers(model)[0][trial.chooses].sum()))


def _write(folder: Path, smaller: Smaller) -> None:
    """Write a model's folder. config.json comes last, because a folder that has it counts as complete."""
    files = dict(smaller.files())
    with fs.as_work_error(f"writing the model into {folder}"):
        fs.make_folder(folder)
        for name in sorted(files, key=lambda name: name == "config.json"):
            fs.write_file(folder / name, files[name], overwrite=True)


@torch.inference_mode()
def _speed_up(trial: Trial, smaller: nn.Module, advance: Advance) -> tuple[float, tuple[float, float]]:
    """Time of the whole model over that of the smaller one: median and quartiles of rounds that alternate."""
    models = [model.to(trial.device).eval() for model in (trial.model, smaller)]
    few = range(min(len(trial.images), trial.batch_size))
    pixels = next(iter(trial.images.batches(len(few), device=trial.device, order=few))).pixels
    for model in models:
        model(pixels)
    ratios = []
    for _ in range(ROUNDS):
        whole, small = (_seconds(model, pixels, trial.device) for model in models)
        ratios.append(whole / small)
        advance()
    low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return float(median), (float(low), float(high))


def _seconds(model: nn.Module, pixels: torch.Tensor, device: torch.device) -> float:
    """Seconds of a forward pass: CPU time of this process on a CPU, so that other processes do not matter."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    start = clock()
    model(pixels)
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return max(clock() - start, 1e-9)
