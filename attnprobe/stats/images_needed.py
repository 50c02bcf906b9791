"""Intervals that a number would have on other numbers of images."""

from collections.abc import Callable, Sequence

import numpy as np

from attnprobe.core.errors import InputError
from attnprobe.core.examined import Precision
from attnprobe.core.measurement import Measurement
from attnprobe.stats.blocks import chosen_threshold
from attnprobe.stats.bootstrap import percentile_interval, values_of_function

Number = Callable[[np.ndarray], np.ndarray]
"""Means [resample, *axes] -> the number that is wanted, [resample]."""


def images_needed(
    m: Measurement,
    number: Number | None = None,
    *,
    sizes: Sequence[int] | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Precision:
    """Intervals of a number by the number of images, from resamples of that size.

    Drawn with replacement, so that sizes beyond the images at hand are possible, too (the m out of n bootstrap for
    smaller ones).

    Args:
        m: with its values image by image; of those that were kept where they are fewer than were measured.
        number: function of the means of a resample; None for the mean over all cells, of `similar_blocks` the
            count.
        sizes: numbers of images; 8, 16, 32 ... four times those there are, if None.
        resamples: for each size.
        seed: of the resampling.

    Raises:
        InputError: fewer than two images, values not kept, or a size below 1.
    """
    if m.per_image is None or m.n_images < 2:
        raise InputError(f"{m.metric}: the values of two or more images are needed, kept image by image.")
    if sizes is None:
        n = len(m.per_image)
        doubling = [8 << k for k in range((n // 2).bit_length())]  # from 8 to four times the images
        sizes = sorted({8, *doubling, n})
    sizes = tuple(sizes)
    if not sizes or min(sizes) < 1:
        raise InputError(f"sizes={sizes} must be numbers of images, at least 1.")
    counted = number is None and m.metric == "similar_blocks"
    row = chosen_threshold(m) if counted else 0

    def wanted(means: np.ndarray) -> np.ndarray:
        if number is not None:
            return number(means)
        return means[:, row] if counted else np.nanmean(means.reshape(len(means), -1), axis=1)

    def of_means(means: np.ndarray, n_images: float | np.ndarray) -> np.ndarray:
        return wanted(means if m.from_mean is None else m.from_mean(means, n_images))

    drawn = [values_of_function(of_means, m.per_image, resamples, seed, size) for size in sizes]
    low, high = np.stack([percentile_interval(one, n) for one, n in zip(drawn, sizes, strict=True)], axis=1)
    value = wanted(m.mean[None])[0]
    if counted:  # by the bounds of each block, as `similar_blocks` counts
        low, high, value = ((one > m.settings["rho"]).sum(-1) for one in (low, high, value))
    return Precision(sizes, low, high, float(value), m.n_images)
