"""timm's evaluation transform of square images, byte for byte, a batch at a time on its device.

Pillow resizes bytes along rows, then along columns, by whole numbers: each output is a weighted sum of a few inputs
whose weights are multiples of 2^-22, rounded to a byte. Whole numbers have no rounding of their own, so the same sums
give the same bytes on every device, whatever autocast or TF32 do to products of floats.
"""

import math
from functools import lru_cache

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from attnprobe.core.images import InputSpec

BITS = 22
"""Pillow's weights are whole numbers of 2^-22: 32 bits, less 8 for the pixel and 2 for kernels that overshoot."""


@lru_cache(maxsize=16)
def taps(old: int, new: int, start: int, stop: int, interpolation: str) -> tuple[Tensor, Tensor]:
    """Pillow's kernel for the outputs `start` to `stop` of `old` pixels resized to `new`.

    Computed by Pillow itself: unit vectors, resized as 32-bit integers, give its weights, rounded as for bytes.

    Returns:
        places, weights: [tap, output]; weights of one output sum to about 2^22.
    """
    units = Image.fromarray(np.eye(old, dtype=np.int32) << BITS)
    weights = np.asarray(units.resize((new, old), Image.Resampling[interpolation.upper()]))[:, start:stop]
    first = (weights != 0).argmax(0)
    last = old - 1 - (weights[::-1] != 0).argmax(0)
    n_taps = (last - first).max() + 1
    places = np.minimum(first, old - n_taps) + np.arange(n_taps)[:, None]
    return torch.from_numpy(places), torch.from_numpy(np.take_along_axis(weights, places, 0))


def along(pixels: Tensor, axis: int, places: Tensor, weights: Tensor) -> Tensor:
    """The weighted sums along axis -1 or -2, rounded and cut off as Pillow does; int32 in and out."""
    total = torch.tensor(1 << (BITS - 1), dtype=torch.int32, device=pixels.device)
    for place, weight in zip(places.to(pixels.device), weights.to(pixels.device), strict=True):
        total = total + pixels.index_select(axis, place) * (weight if axis == -1 else weight[:, None])
    return (total >> BITS).clamp_(0, 255)


def as_evaluated(pixels: Tensor, spec: InputSpec) -> Tensor:
    """[image, channel, side, side], uint8 -> [image, channel, *spec.size] in [0, 1]; `spec.size` must be square.

    Resized to size / crop_pct, then cropped in the middle: equal to timm's to the bit.
    """
    old, side = pixels.shape[-1], spec.size[0]
    new = math.floor(side / spec.crop_pct)
    start = round((new - side) / 2)
    if old == new:
        return pixels[..., start : start + side, start : start + side].float() / 255
    places, weights = taps(old, new, start, start + side, spec.interpolation)
    return along(along(pixels.int(), -1, places, weights), -2, places, weights).float() / 255
