"""The chaos game: drawing the attractors of systems of affine maps.

Barnsley 1988, "Fractals Everywhere": a point that is moved again and again by a map picked at
random visits the attractor of the maps. Here many points per image move in parallel, many images at once.

Only additions, products, quotients, square roots and comparisons are used, one per torch kernel. IEEE 754 fixes
the result of each to the last bit, so an image does not depend on the batch it is drawn in. A power would:
`x**0.25` rounded 1.8 % of numbers otherwise in short tensors (scalar loop) than in long ones (vectorised).
"""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

WARM_UP = 16
"""Steps before the first point is drawn: walkers start together on one fixed point and have to spread."""

STEPS = 48
PIXELS_PER_WALKER = 8
"""With `STEPS`: 6 points per pixel, in the same number of steps for any size."""

POINTS_AT_ONCE = 1 << 21
"""Bounds memory: about 80 bytes per point."""

MARGIN = 0.06


def uniform(*coordinates: int | np.ndarray) -> np.ndarray:
    """Uniform numbers in [0, 1), float64, one per element of the broadcast integer coordinates.

    A hash rather than a generator with a state: the number at a coordinate never depends on which others are
    drawn. Mixing function: splitmix64 (Steele, Lea and Flood 2014).
    """
    arrays = np.broadcast_arrays(*(np.atleast_1d(np.asarray(c, dtype=np.uint64)) for c in coordinates))
    state = np.zeros_like(arrays[0])
    for array in arrays:
        state = state + array + np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return (state >> np.uint64(11)) * 2.0**-53


@lru_cache(maxsize=4)
def choices(walkers: int) -> Tensor:
    """Uniform numbers [step, walker] by which walkers choose their maps, the same for all images."""
    numbers = uniform(np.arange(WARM_UP + STEPS)[:, None], np.arange(walkers)[None])
    return torch.from_numpy(numbers.astype(np.float32))


def visit(maps: Tensor, shares: Tensor, walkers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Points on the attractors of some systems: x, y and the map that made the point, [image, point] each.

    Args:
        maps: [image, map, 6], float32; (a, b, c, d, e, f) moves (x, y) to (a x + b y + e, c x + d y + f).
        shares: [image, map], the probability of each map; sums to 1.
        walkers: per image; each makes `STEPS` points.
    """
    n_images, n_maps = shares.shape
    noise = choices(walkers).to(maps.device)
    ends = shares.cumsum(1)[:, :-1, None]
    first_row = torch.arange(n_images, device=maps.device)[:, None] * n_maps
    rows = maps.reshape(-1, 6)

    a, b, c, d, e, f = maps[:, :1].unbind(-1)  # start on the fixed point of the first map: it is on the attractor
    determinant = (1 - a) * (1 - d) - b * c
    x = (((1 - d) * e + b * f) / determinant).expand(-1, walkers)
    y = (((1 - a) * f + c * e) / determinant).expand(-1, walkers)
    xs, ys, chosen = [], [], []
    for step in range(WARM_UP + STEPS):
        choice = (noise[step] >= ends).sum(1)
        a, b, c, d, e, f = rows[first_row + choice].unbind(-1)
        x, y = a * x + b * y + e, c * x + d * y + f
        if step >= WARM_UP:
            xs.append(x)
            ys.append(y)
            chosen.append(choice)
    return torch.cat(xs, 1), torch.cat(ys, 1), torch.cat(chosen, 1)


def n_walkers(size: tuple[int, int]) -> int:
    """The number of points that move in parallel for an image of this size."""
    return -(-size[0] * size[1] // PIXELS_PER_WALKER)


def density(maps: Tensor, shares: Tensor, size: tuple[int, int], view: Tensor | None = None) -> Tensor:
    """Visits to every pixel by the map that made them: [image, map, row, col], integers.

    The attractor, seen through the linear `view` [image, 4] (row by row), fills the image up to a margin; its
    proportions are kept.
    """
    rows, cols = size
    n_images, n_maps = shares.shape
    x, y, chosen = visit(maps, shares, n_walkers(size))
    if view is not None:
        a, b, c, d = view[:, None].unbind(-1)
        x, y = a * x + b * y, c * x + d * y
    low_x, high_x, low_y, high_y = x.amin(1), x.amax(1), y.amin(1), y.amax(1)
    scale = torch.minimum(cols / (high_x - low_x), rows / (high_y - low_y)) * (1 - 2 * MARGIN)
    col = (x - ((low_x + high_x) / 2)[:, None]) * scale[:, None] + cols / 2
    row = (y - ((low_y + high_y) / 2)[:, None]) * scale[:, None] + rows / 2
    image = torch.arange(n_images, device=maps.device)[:, None]
    pixel = ((image * n_maps + chosen) * rows + row.long()) * cols + col.long()
    counts = torch.bincount(pixel.flatten(), minlength=n_images * n_maps * rows * cols)
    return counts.view(n_images, n_maps, rows, cols)


def render(maps: Tensor, shares: Tensor, view: Tensor, palette: Tensor, size: tuple[int, int]) -> Tensor:
    """Images [image, 3, row, col] of systems of maps, with values in [0, 1].

    Brightness is the fourth root of the visits relative to the brightest pixel; the colour of a pixel is the
    mean of the colours `palette` [image, map, 3] of the maps that made its points.
    """
    pictures = []
    at_once = max(1, POINTS_AT_ONCE // (STEPS * n_walkers(size)))
    for cut in (slice(start, start + at_once) for start in range(0, len(maps), at_once)):
        counts = density(maps[cut], shares[cut], size, view[cut])
        visits = counts.sum(1, keepdim=True)
        brightness = (visits / visits.amax((2, 3), keepdim=True)).sqrt().sqrt()
        mixed = torch.zeros(len(counts), 3, *size, device=maps.device)
        for m in range(counts.shape[1]):
            mixed = mixed + palette[cut, m, :, None, None] * counts[:, m : m + 1]
        pictures.append((brightness * (mixed / visits.clamp(min=1))).clamp(max=1))  # the mean may round above 1
    return torch.cat(pictures)
