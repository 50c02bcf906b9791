"""Random crops, flips, colours and erasing for a whole batch on its device, different for every image.

What happens to which image is drawn on the CPU from PyTorch's global generator, so `torch.manual_seed` gives the same
choices on every device; only the noise of erased boxes comes from the device's own generator.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from attnprobe.core.errors import InputError, check_choice
from attnprobe.core.images import InputSpec
from attnprobe.training.pixel_ops import warp
from attnprobe.training.policies import ColorJitter, Policy, parse_policy

ATTEMPTS = 10
"""How often a box that does not fit is drawn again, as in timm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentConfig:
    """What is done to training images; names and meaning are timm's, but everything is off unless chosen."""

    scale: tuple[float, float] = (1.0, 1.0)
    """Random resized crop: share of the picture's area; timm's default is (0.08, 1)."""

    ratio: tuple[float, float] = (1.0, 1.0)
    """Random resized crop: aspect ratio; timm's default is (3/4, 4/3)."""

    train_interpolation: Literal["random", "bilinear", "bicubic"] = "random"
    """For crops and policies; random takes one of the others for each image."""

    hflip: float = 0.0
    """Probability of a horizontal flip; timm's default is 0.5."""

    vflip: float = 0.0

    color_jitter: float | tuple[float, ...] = 0.0
    """Strength for brightness, contrast and saturation, or one each and for hue; timm's default is 0.4.
    Not applied beside `aa`, unless that is 3a."""

    color_jitter_prob: float | None = None
    """Probability of any jitter; None for 1."""

    aa: str | None = None
    """RandAugment or AutoAugment; see `parse_policy`."""

    reprob: float = 0.0
    """Probability of random erasing."""

    remode: Literal["const", "rand", "pixel"] = "pixel"
    """What fills an erased box: the mean colour, one random colour, or noise."""

    recount: int = 1
    """Most boxes per image."""

    mixup: float = 0.0
    """Alpha of mixup; 0 for none."""

    cutmix: float = 0.0
    """Alpha of cutmix; 0 for none."""

    cutmix_minmax: tuple[float, float] | None = None
    """Cutmix with boxes whose sides are uniform between these shares, instead of by alpha."""

    mixup_prob: float = 1.0
    """Probability of either."""

    mixup_switch_prob: float = 0.5
    """Probability of cutmix, where both are on."""

    mixup_mode: Literal["batch", "pair", "elem"] = "batch"
    """What shares one draw: the batch, the two images of a pair, or none."""

    smoothing: float = 0.0
    """Label smoothing; timm's default is 0.1."""

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise InputError(f"scale={self.scale} must be two shares of the area, 0 < low <= high <= 1.")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise InputError(f"ratio={self.ratio} must be two aspect ratios, 0 < low <= high.")
        for name in ("hflip", "vflip", "color_jitter_prob", "reprob", "mixup_prob", "mixup_switch_prob", "smoothing"):
            if not 0 <= (getattr(self, name) or 0) <= 1:
                raise InputError(f"{name}={getattr(self, name)} must lie in [0, 1].")
        if self.recount < 1 or self.mixup < 0 or self.cutmix < 0:
            raise InputError(f"recount={self.recount} must be at least 1; mixup and cutmix not negative.")
        if self.cutmix_minmax and not 0 <= self.cutmix_minmax[0] <= self.cutmix_minmax[1] <= 1:
            raise InputError(f"cutmix_minmax={self.cutmix_minmax} must be two shares, 0 <= low <= high <= 1.")
        check_choice("train_interpolation", self.train_interpolation, ("random", "bilinear", "bicubic"))
        check_choice("remode", self.remode, ("const", "rand", "pixel"))
        check_choice("mixup_mode", self.mixup_mode, ("batch", "pair", "elem"))
        self.jitter()  # refuses what it cannot read

    def jitter(self) -> ColorJitter | None:
        """The colour jitter in use; none beside a policy other than 3a."""
        given = self.color_jitter
        strength = (given,) * 3 if isinstance(given, int | float) else tuple(given)
        if len(strength) not in (3, 4) or min(strength) < 0 or max(strength[3:], default=0) > 0.5:
            raise InputError(
                f"color_jitter={self.color_jitter} must be a number, or three: brightness, contrast, saturation; "
                "a fourth is hue, at most 0.5."
            )
        strength += (0.0,) * (4 - len(strength))
        if not any(strength) or (self.aa and "3a" not in self.aa):
            return None
        return ColorJitter(strength, 1.0 if self.color_jitter_prob is None else self.color_jitter_prob)


class Augmentation:
    """Everything but mixing, in timm's order: crop and flips, policy, jitter (`picture`), then erasing (`erase`).

    A loop that follows timm mixes images between the two.
    """

    def __init__(self, config: AugmentConfig, spec: InputSpec) -> None:
        self.config, self.spec = config, spec
        steps: tuple[Policy | ColorJitter | None, ...] = (
            parse_policy(config.aa) if config.aa else None,
            config.jitter(),
        )
        self.steps = tuple(step for step in steps if step)

    def __call__(self, pixels: Tensor) -> Tensor:
        """[image, 3, row, col], normalised as `spec` says, on any device -> the same."""
        return self.erase(self.picture(pixels))

    def picture(self, pixels: Tensor) -> Tensor:
        """Crop, flips, policy and jitter of normalised pixels."""
        config, changed = self.config, pixels
        if config.scale != (1.0, 1.0) or config.ratio != (1.0, 1.0):
            changed = random_resized_crop(pixels, config.scale, config.ratio, config.train_interpolation)
            if config.train_interpolation != "bilinear" and not self.steps:
                changed = self.spec.normalise(self.spec.restore(changed))  # cuts off what a bicubic kernel overshoots
        changed = random_flip(random_flip(changed, config.hflip, -1), config.vflip, -2)
        if not self.steps:
            return changed
        shown = (self.spec.restore(changed) * 255).round().to(torch.uint8)
        fill = (255 * torch.tensor(self.spec.mean, device=shown.device)).round()
        for step in self.steps:
            shown = step(shown, fill=fill, interpolation=config.train_interpolation)
        return self.spec.normalise(shown.to(pixels.dtype) / 255)

    def erase(self, pixels: Tensor) -> Tensor:
        """Random erasing of normalised pixels."""
        return erase(pixels, self.config.reprob, self.config.remode, self.config.recount)


def _uniform(low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, dtype=torch.float64)


def _one_of(count: Tensor) -> Tensor:
    """A uniform whole number from 0 up to, not including, `count`."""
    return (torch.rand_like(count) * count).floor()


def random_resized_crop(
    pixels: Tensor, scale: tuple[float, float], ratio: tuple[float, float], interpolation: str
) -> Tensor:
    """Show a random box of every image, of a share of the area and an aspect ratio in these ranges, at full size.

    Up to `ATTEMPTS` boxes are drawn until one fits; then the largest central one of a permitted ratio is taken.
    A bicubic kernel may overshoot the range of the input.
    """
    n, _, rows, cols = pixels.shape
    width, height = _sides(_uniform(*scale, n, ATTEMPTS) * rows * cols, *ratio)
    fits = (width <= cols) & (height <= rows)
    first = fits.int().argmax(1, keepdim=True)
    width, height, fits = width.gather(1, first)[:, 0], height.gather(1, first)[:, 0], fits.any(1)
    left, top = _one_of((cols - width + 1).clamp(min=1)), _one_of((rows - height + 1).clamp(min=1))
    central_width, central_height = min(cols, round(rows * ratio[1])), min(rows, round(cols / ratio[0]))
    width, left = torch.where(fits, width, central_width), torch.where(fits, left, (cols - central_width) // 2)
    height, top = torch.where(fits, height, central_height), torch.where(fits, top, (rows - central_height) // 2)
    maps = torch.zeros(n, 2, 3, dtype=torch.float64)
    maps[:, 0, 0], maps[:, 0, 2] = width / cols, (2 * left + width) / cols - 1
    maps[:, 1, 1], maps[:, 1, 2] = height / rows, (2 * top + height) / rows - 1
    return warp(pixels, maps.to(pixels.device, pixels.dtype), interpolation)


def random_flip(pixels: Tensor, probability: float, axis: int) -> Tensor:
    """Mirror some images along an axis."""
    chosen = (torch.rand(len(pixels)) < probability).nonzero()[:, 0].to(pixels.device)
    if not len(chosen):
        return pixels
    out = pixels.clone()
    out[chosen] = pixels[chosen].flip(axis)
    return out


def _sides(area: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Whole-numbered width and height of boxes of these areas, the logarithm of the ratio uniform."""
    ratio = _uniform(math.log(low), math.log(high), *area.shape).exp()
    return (area * ratio).sqrt().round(), (area / ratio).sqrt().round()


def erase(pixels: Tensor, probability: float, mode: str = "pixel", count: int = 1) -> Tensor:
    """timm's random erasing: boxes of 2 to 33 % of the area, shared by all boxes of an image, in some images.

    Args:
        pixels: [image, 3, row, col], normalised.
        probability: of an image to be erased at all.
        mode: "const" fills with 0, "rand" with one normal colour, "pixel" with normal noise.
        count: the most boxes; the number is uniform from 1.
    """
    chosen = (torch.rand(len(pixels)) < probability).nonzero()[:, 0]
    if not len(chosen):
        return pixels
    rows, cols = pixels.shape[-2:]
    n = len(chosen)
    number = 1 + _one_of(torch.full((n, 1, 1), float(count)))
    share = _uniform(0.02, 1 / 3, n, count, ATTEMPTS) / number
    width, height = _sides(share * rows * cols, 0.3, 1 / 0.3)
    fits = (width < cols) & (height < rows) & (torch.arange(count).view(1, -1, 1) < number)
    first = fits.int().argmax(2, keepdim=True)
    fits = fits.any(2)
    width, height = width.gather(2, first)[..., 0] * fits, height.gather(2, first)[..., 0] * fits
    left, top = _one_of(cols - width + 1), _one_of(rows - height + 1)

    where = chosen.to(pixels.device)
    erased = pixels[where]
    boxes = torch.stack((top, top + height, left, left + width), -1).to(pixels.device, torch.float32)
    for box in boxes.unbind(1):
        if mode == "const":
            paint = erased.new_zeros(())
        else:
            paint = torch.randn_like(erased if mode == "pixel" else erased[..., :1, :1])
        erased = torch.where(inside(box, rows, cols), paint, erased)
    out = pixels.clone()
    out[where] = erased
    return out


def inside(box: Tensor, rows: int, cols: int) -> Tensor:
    """Boxes [image, 4] as top, bottom, left, right -> [image, 1, row, col], whether a pixel lies in its image's box."""
    top, bottom, left, right = box.view(-1, 4, 1, 1, 1).unbind(1)
    row = torch.arange(rows, device=box.device).view(1, 1, -1, 1)
    col = torch.arange(cols, device=box.device).view(1, 1, 1, -1)
    return (row >= top) & (row < bottom) & (col >= left) & (col < right)
