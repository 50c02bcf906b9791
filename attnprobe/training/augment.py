"""Augmentation of a whole batch on its device, with random numbers of its own for every image.

Question: which operations are worth code of our own? Choice: crops, flips and erasing, in one pass over the batch.
Policies (RandAugment, AutoAugment) and colour jitter are timm's, on Pillow images: in the worker processes wherever
images can be decoded (`workflows.train` asks for that), else here, one image after the other. Measured on one CPU core,
ms per image at 32 / 224 px:

    rand-m9          timm's, one image at a time   0.09 / 0.95       batched by operation (removed)  0.06 / 0.99
                     torchvision v2, image by image  0.21 / 1.1      kornia 0.8  0.10 / 4.2
    crop             here  0.012 / 0.56              kornia  0.055 / 0.68
    erasing          here  0.021 / 1.7               kornia  0.039 / 1.0

torchvision's v2 draws once for a whole batch (64 equal images stay equal), and so does kornia's RandAugment choose its
operations (1 to 4 different results of 64); kornia's single operations draw per image, but would be a new dependency.
Reconsider where workers cannot keep up with a GPU: a core hands out 3,500 images of 32 px a second.

Random choices come from PyTorch's global CPU generator, so that `torch.manual_seed` gives the same on every device;
only the noise in erased boxes comes from the device's own generator.
"""

import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from attnprobe.core.devices import on_device
from attnprobe.core.images import InputSpec
from attnprobe.training.config import AugmentConfig
from attnprobe.training.transforms import colour_steps, seeded

ATTEMPTS = 10
"""Draws of a box before giving up on one that fits, as in timm."""


class Augmentation:
    """All augmentation but mixing, in timm's order: crop, flips, policy and jitter (`image`), then `erase`.

    The training loop mixes images between the two, as timm does.
    """

    def __init__(self, config: AugmentConfig, spec: InputSpec) -> None:
        self.config, self.spec = config, spec
        self.steps = colour_steps(config, spec) if config.by_pillow else ()

    def __call__(self, pixels: Tensor) -> Tensor:
        """[image, 3, row, col], normalised as `spec` says, on any device -> the same."""
        return self.erase(self.image(pixels))

    def image(self, pixels: Tensor) -> Tensor:
        """Crop, flips, policy and jitter of normalised pixels."""
        config, changed = self.config, pixels
        if config.scale != (1.0, 1.0) or config.ratio != (1.0, 1.0):
            changed = random_resized_crop(pixels, config.scale, config.ratio, config.train_interpolation)
            if config.train_interpolation != "bilinear" and not self.steps:
                changed = self.spec.normalise(self.spec.restore(changed))  # clips the overshoot of bicubic kernels
        changed = random_flip(random_flip(changed, config.hflip, -1), config.vflip, -2)
        return self._one_by_one(changed) if self.steps else changed

    def erase(self, pixels: Tensor) -> Tensor:
        """Random erasing of normalised pixels."""
        return erase(pixels, self.config.reprob, self.config.remode, self.config.recount)

    def _one_by_one(self, pixels: Tensor) -> Tensor:
        """timm's policy and jitter on the CPU, one image after the other, back on the device of `pixels`."""
        shown = (self.spec.restore(pixels) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        made = np.empty((len(shown), 3, *shown.shape[1:3]), dtype=np.uint8)
        with seeded(tuple(torch.randint(1 << 31, (3,)).tolist())):
            for k, array in enumerate(shown):
                image: Any = Image.fromarray(array)
                for step in self.steps:
                    image = step(image)
                made[k] = image
        return self.spec.normalise(torch.from_numpy(made).to(pixels) / 255)


def random_resized_crop(
    pixels: Tensor, scale: tuple[float, float], ratio: tuple[float, float], interpolation: str
) -> Tensor:
    """A random box of every image, resized to the full size.

    Up to `ATTEMPTS` boxes are drawn until one fits; then the largest central one of an allowed ratio is taken, as in
    timm. A bicubic kernel may overshoot the range of the input.

    Args:
        pixels: [image, 3, row, col], any float range.
        scale, ratio: ranges of the box's fraction of the area and of its aspect ratio.
        interpolation: "bilinear", "bicubic", or "random": one of these per image.
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
    maps = maps.to(pixels.dtype)
    if interpolation != "random":
        return _resample(pixels, on_device(pixels.device, maps)[0], interpolation)
    coin, out = torch.rand(n) < 0.5, torch.empty_like(pixels)
    for mode, chosen in (("bilinear", coin), ("bicubic", ~coin)):
        if chosen.any():
            rows_of, maps_of = on_device(pixels.device, chosen.nonzero()[:, 0], maps[chosen])
            out[rows_of] = _resample(pixels[rows_of], maps_of, mode)
    return out


def _resample(pixels: Tensor, maps: Tensor, mode: str) -> Tensor:
    """Pixels where affine maps [image, 2, 3] of output to input coordinates, both in [-1, 1], point; edges repeat."""
    grid = F.affine_grid(maps, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels, grid, mode=mode, padding_mode="border", align_corners=False)


def random_flip(pixels: Tensor, probability: float, axis: int) -> Tensor:
    """Images mirrored along an axis with a probability."""
    chosen = (torch.rand(len(pixels)) < probability).nonzero()[:, 0]
    if not len(chosen):
        return pixels
    (rows,) = on_device(pixels.device, chosen)
    out = pixels.clone()
    out[rows] = pixels[rows].flip(axis)
    return out


def erase(pixels: Tensor, probability: float, mode: str = "pixel", count: int = 1) -> Tensor:
    """timm's random erasing: boxes that together cover 2 to 33 % of an image.

    Args:
        pixels: [image, 3, row, col], normalised.
        probability: of an image to be erased at all.
        mode: "const" fills with 0, "rand" with one normal colour, "pixel" with normal noise.
        count: maximum number of boxes; the number is uniform from 1.
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

    where, boxes = on_device(
        pixels.device, chosen, torch.stack((top, top + height, left, left + width), -1).to(torch.float32)
    )
    erased = pixels[where]
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
    """True if pixels lie in boxes [image, 4] of top, bottom, left, right: [image, 1, row, col], bool."""
    top, bottom, left, right = box.view(-1, 4, 1, 1, 1).unbind(1)
    row = torch.arange(rows, device=box.device).view(1, 1, -1, 1)
    col = torch.arange(cols, device=box.device).view(1, 1, 1, -1)
    return (row >= top) & (row < bottom) & (col >= left) & (col < right)


def _uniform(low: float, high: float, *shape: int) -> Tensor:
    return low + (high - low) * torch.rand(shape, dtype=torch.float64)


def _one_of(count: Tensor) -> Tensor:
    """Uniform whole numbers from 0 up to, not including, `count`."""
    return (torch.rand_like(count) * count).floor()


def _sides(area: Tensor, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Width and height, rounded, of boxes of these areas, the logarithm of the ratio uniform."""
    ratio = _uniform(math.log(low), math.log(high), *area.shape).exp()
    return (area * ratio).sqrt().round(), (area / ratio).sqrt().round()
