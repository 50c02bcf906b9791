"""timm's training transforms: on whole images in worker processes, or their colour steps alone."""

import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor

from attnprobe.core.errors import InputError
from attnprobe.core.images import InputSpec
from attnprobe.training.config import AugmentConfig

POLICY = re.compile(
    r"rand(-(m\d+|n([1-9]|1[0-4])|p(0(\.\d+)?|1(\.0+)?)|mstd\d+(\.\d+)?|mmax\d+|inc\d+|t(weights|3aw|3a)))*"
    r"|(v0r?|originalr?|3a)(-mstd\d+(\.\d+)?)?"
    r"|augmix(-.+)?"
)
"""Strings of policies that timm reads as they are meant; of others it silently ignores what it does not know."""


class LocatedCrop(RandomResizedCropAndInterpolation):
    """timm's random crop, which keeps the place of the last one in `box`."""

    def get_params(self, image: Image.Image, scale: Any, ratio: Any) -> tuple[int, int, int, int]:
        top, left, height, width = super().get_params(image, scale, ratio)
        cols, rows = image.size
        self.box = (left / cols, top / rows, (left + width) / cols, (top + height) / rows)
        return top, left, height, width


class LocatedFlip(torch.nn.Module):
    """torchvision's random flip, which keeps in `flipped` whether the last image was."""

    def __init__(self, probability: float, transpose: Image.Transpose) -> None:
        super().__init__()
        self.probability, self.transpose = probability, transpose

    def forward(self, image: Image.Image) -> Image.Image:
        self.flipped = self.probability > 0 and bool(torch.rand(1) < self.probability)
        return image.transpose(self.transpose) if self.flipped else image


class TrainTransform:
    """`transform(image, position, key)` -> [3, row, col], uint8: a function of the image and of `key` alone.

    So the result depends neither on the process nor on the number of processes, and an epoch can be repeated. The rest
    is done on the device: division by 255, `spec.normalise`, mixing and `erase`.

    With `label_maps` it returns (pixels, `label_maps(position)`, the place [6] that `token_targets` wants).
    """

    def __init__(
        self, primary: Sequence[Callable], colour: Sequence[Callable], label_maps: Callable[[int], Tensor] | None = None
    ) -> None:
        self.primary, self.colour, self.label_maps = primary, colour, label_maps

    def __call__(self, image: Image.Image, position: int, key: tuple[int, ...]) -> Tensor | tuple[Tensor, ...]:
        """`image` is RGB; any whole numbers from 0 serve as `key`."""
        with seeded(key):
            shown: Any = image
            for step in (*self.primary, *self.colour):
                shown = step(shown)
        pixels = torch.as_tensor(shown)
        if self.label_maps is None:
            return pixels
        crop, *flips = self.primary
        place = torch.tensor([*crop.box, *(float(flip.flipped) for flip in flips)])
        return pixels, self.label_maps(position), place


def train_transform(
    config: AugmentConfig, spec: InputSpec, label_maps: Callable[[int], Tensor] | None = None
) -> TrainTransform:
    """timm's training transform up to bytes, with all options of `config` but mixing and erasing; it pickles.

    Raises:
        InputError: a policy that timm would not understand.
    """
    primary = (
        LocatedCrop(spec.size, config.scale, config.ratio, config.train_interpolation),
        LocatedFlip(config.hflip, Image.Transpose.FLIP_LEFT_RIGHT),
        LocatedFlip(config.vflip, Image.Transpose.FLIP_TOP_BOTTOM),
    )
    return TrainTransform(primary, colour_steps(config, spec), label_maps)


def colour_steps(config: AugmentConfig, spec: InputSpec) -> tuple[Callable, ...]:
    """timm's steps after crop and flips, from a Pillow image to an array [3, row, col] of bytes: policy and jitter.

    Raises:
        InputError: a policy that timm would not understand.
    """
    known = "rand with some of -m9 -n2 -p0.5 -mstd0.5 -mmax10 -inc1 -tweights; v0, v0r, original, originalr, 3a; augmix"
    if config.aa and not POLICY.fullmatch(config.aa):
        raise InputError(f"aa={config.aa!r} cannot be read; expected {known}.")
    try:
        stages: Any = create_transform(
            (3, *spec.size),
            is_training=True,
            use_prefetcher=True,
            color_jitter=config.color_jitter,
            color_jitter_prob=config.color_jitter_prob,
            auto_augment=config.aa or None,
            interpolation=config.train_interpolation,
            mean=spec.mean,
            std=spec.std,
            separate=True,
        )
    except (AssertionError, ValueError) as error:
        raise InputError(f"aa={config.aa!r}: timm cannot read it ({error}); try augmix-m3-w3-d2.") from error
    steps = tuple(step for stage in stages[1:] for step in stage.transforms)
    for step in steps:
        _keep_no_bits(step)
    return steps


def _keep_no_bits(part: Any) -> None:
    """Let timm's operations posterise to 0 bits: their levels reach it, but Pillow 13 refuses what older ones did."""
    groups = getattr(part, "policy", None) or [getattr(part, "ops", [])]
    for operation in (operation for group in groups for operation in group):
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = posterize


def posterize(image: Image.Image, bits_to_keep: int, **options: Any) -> Image.Image:
    """Keep the highest bits of an image; none of them is black."""
    if bits_to_keep < 1:
        return Image.new(image.mode, image.size)
    return auto_augment.posterize(image, bits_to_keep, **options)


@contextmanager
def seeded(key: tuple[int, ...]) -> Iterator[None]:
    """Seed the three global generators timm draws from (Python, NumPy, PyTorch) by `key`, and restore them after."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed = np.random.SeedSequence(key).generate_state(3).tolist()
    try:
        random.seed(seed[0])
        np.random.seed(seed[1])
        torch.default_generator.manual_seed(seed[2])  # torch.manual_seed would reseed the GPUs as well
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
