"""The inputs of training: an epoch divided into steps, and each step's augmented batch."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnprobe.core.errors import InputError
from attnprobe.core.images import ImageSource
from attnprobe.training.augment import Augmentation, erase
from attnprobe.training.config import TrainConfig
from attnprobe.training.log import Waiting
from attnprobe.training.mix import Mix
from attnprobe.training.processes import Processes
from attnprobe.training.token_labels import LabelMaps, token_targets
from attnprobe.training.transforms import TrainTransform, train_transform


@dataclass(frozen=True, slots=True)
class Plan:
    """Division of an epoch into steps (one batch of all processes) and updates (`accumulate` steps).

    A last batch with fewer images than processes is left out.
    """

    images: int
    batch_size: int
    accumulate: int
    world: int

    @property
    def per_step(self) -> int:
        """Images of one step, of all processes together."""
        return self.batch_size * self.world

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return self.images // self.per_step + (self.images % self.per_step >= self.world)

    @property
    def updates(self) -> int:
        """Updates of an epoch; the last may have fewer steps."""
        return math.ceil(self.steps / self.accumulate)

    def at(self, step: int) -> tuple[int, int, int, bool]:
        """The images of a step, its update within the epoch, the update's number of steps, and whether it is the last.

        Steps and updates count from 0.
        """
        update, part = divmod(step, self.accumulate)
        parts = min(self.accumulate, self.steps - update * self.accumulate)
        return min(self.per_step, self.images - step * self.per_step), update, parts, part == parts - 1


class Inputs:
    """Augmented batches of the training images, on the device.

    Attributes:
        waited: seconds of the current epoch spent waiting for images.
    """

    def __init__(self, model: Any, images: Any, config: TrainConfig, group: Processes, plan: Plan) -> None:
        self.model, self.images, self.config, self.group, self.plan = model, images, config, group, plan
        self.waited = 0.0
        self.mix = Mix(config, len(images.class_names)) if config.mixes else None
        self.by_workers: TrainTransform | None = None
        self.augment: Callable[[Tensor], Tensor] | None = None
        if hasattr(images, "augmented"):  # augmented where they are decoded, at their full size
            self.by_workers = train_transform(config, images.spec, _label_maps(config, images))
        elif config.token_label_data:
            raise InputError(f"token_label_data is for folders of images; {config.dataset} has no files.")
        else:
            self.augment = Augmentation(config, images.spec).image

    def epoch(self, epoch: int, first: int) -> Iterator[tuple[int, Tensor, Any]]:
        """Yield (step, pixels, targets) of an epoch, from step `first`.

        All randomness of the order follows from (seed, epoch), of a step from (seed, epoch, step, process), so that
        training can resume anywhere. What the consumer draws before it asks for the next step belongs to this one.
        """
        config, plan, source, rank = self.config, self.plan, self.images, self.group.rank
        _seed(config.seed, epoch)
        order = _order(plan.images, config.aug_repeats)
        mixing = self.mix if not 0 < config.mixup_off_epoch <= epoch else None
        if self.by_workers:
            source = source.augmented(self.by_workers, (config.seed, epoch, rank), first=first * config.batch_size)
        cuts = (slice(step * plan.per_step, (step + 1) * plan.per_step) for step in range(first, plan.steps))
        mine = [position for cut in cuts for position in self.group.share(order[cut])]
        batches = Waiting(source.batches(config.batch_size, device=self.group.device, order=mine))
        for step, batch in enumerate(batches, first):
            self.waited = batches.seconds
            _seed(config.seed, epoch, step, rank)
            pixels, targets = batch.pixels, batch.labels
            if not batch.ids:  # none of its images could be read; the step is made all the same
                yield step, pixels, targets
                continue
            if self.augment:
                pixels = self.augment(pixels)
            if mixing:  # before erasing, as in timm: erased boxes are not blended with the other image
                pixels, targets = mixing(pixels, targets)
            if batch.more:
                maps, places = batch.more
                targets = token_targets(maps, places, len(source.class_names), self.model.patch_embed.grid_size)
            yield step, erase(pixels, config.reprob, config.remode, config.recount), targets
        self.waited = batches.seconds


IMBALANCE = 3
"""Ratio of the numbers of images of two classes above which a line says so."""


def imbalance(images: Any) -> str:
    """A remark on classes of very different numbers of images; "" if there are none, or their labels are unknown."""
    labels = torch.as_tensor(getattr(images, "labels", ()), dtype=torch.long)
    counts = torch.bincount(labels[labels >= 0].cpu(), minlength=len(images.class_names))
    if len(counts) < 2 or not len(labels) or counts.max() <= IMBALANCE * counts.min():
        return ""
    return (
        f"classes of {images.name} have {counts.min()} to {counts.max()} images: top-1 favours the large ones; "
        "attnprobe evaluate --per-class (.per_class of ap.evaluate) shows each"
    )


def _label_maps(config: TrainConfig, images: ImageSource) -> LabelMaps | None:
    if config.token_label_data is None:
        return None
    return LabelMaps(Path(config.token_label_data).expanduser(), images.ids, len(images.class_names))


def _seed(*numbers: int) -> None:
    """Seed every generator of PyTorch from these numbers."""
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]))


def _order(n: int, repeats: int) -> list[int]:
    """A random order of n positions; with repeated augmentation, `repeats` copies of each in a row, n in all."""
    order = torch.randperm(n)
    return (order.repeat_interleave(repeats)[:n] if repeats > 1 else order).tolist()
