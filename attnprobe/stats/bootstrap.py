"""Bootstrap intervals of means over images, and of functions of such means.

The percentile bootstrap: draw as many images as there are, with replacement, and take the mean again; the middle of
such means is the interval. The middle 95 % is too narrow where images are few (it covers 89 % of 8 normal values);
expanded as by Hesterberg 2015, arXiv:1411.5279, to what Student's t would take, it is not. Every metric of one
measurement draws the same images, so that derived numbers, computed from the resampled means as from the mean itself,
stay consistent with one another.
"""

import math
from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from scipy.special import ndtr, stdtrit

from attnprobe.core.measurement import FromMean, Measurement

BLOCK_BYTES = 32 * 2**20
"""Largest temporary array."""


def resampled_means(m: Measurement, at_most: int | None = None) -> np.ndarray | None:
    """[resample, *axes]: the mean over images of each resample, or `m.from_mean` of it.

    There are `m.settings["bootstrap"]` of them, or `at_most`; those that were drawn while measuring, if it did so.

    None where there is nothing to resample: fewer than two images, no per-image values, or the bootstrap switched off.
    """
    replicates = min(m.settings["bootstrap"], at_most or m.settings["bootstrap"])
    if m.replicates is not None:
        drawn = m.replicates[:replicates]
        return drawn if m.from_mean is None else centred(m.from_mean(drawn, m.n_images), m.mean)
    if m.per_image is None or m.n_images < 2 or len(m.per_image) < m.n_images or replicates == 0:
        return None
    if m.from_mean is not None:
        return _centred_values(m.from_mean, m.per_image, replicates, m.settings["bootstrap_seed"])
    cells = m.per_image.reshape(m.n_images, -1)
    means = np.concatenate(list(_blocks_of_means(cells, replicates, m.settings["bootstrap_seed"])), axis=1)
    return means.reshape(replicates, *m.per_image.shape[1:])


def interval_of_mean(per_image: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """[2, *axes]: bounds of the 95 % interval of the mean of [image, *axes], image by image where it is finite."""
    cells = per_image.reshape(len(per_image), -1)
    bounds = [percentile_interval(means, len(cells)) for means in _blocks_of_means(cells, replicates, seed)]
    return np.concatenate(bounds, axis=1).reshape(2, *per_image.shape[1:])


def interval_of_function(function: FromMean, per_image: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """[2, *axes]: bounds of the 95 % interval of a function of the mean; see `Metric.from_mean`."""
    return percentile_interval(_centred_values(function, per_image, replicates, seed), len(per_image))


def _centred_values(function: FromMean, per_image: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """`values_of_function`, centred at the function of all images."""
    drawn = values_of_function(function, per_image, replicates, seed)
    return centred(drawn, function(finite_mean(per_image), n_finite(per_image)))


def finite_mean(per_image: np.ndarray) -> np.ndarray:
    """[image, *axes] -> [*axes], float64: the mean over images of the values that are finite; NaN where none is."""
    finite = np.isfinite(per_image)
    with np.errstate(invalid="ignore"):
        return np.where(finite, per_image, 0.0).sum(0, dtype=np.float64) / finite.sum(0)


def n_finite(per_image: np.ndarray) -> float | np.ndarray:
    """[image, *axes] -> the number of images whose value is finite, for `FromMean`."""
    return one_if_equal(np.isfinite(per_image).sum(0).astype(np.float64))


def one_if_equal(n: np.ndarray) -> float | np.ndarray:
    """Numbers of images [*axes], or the one number that all of them are."""
    return float(n.flat[0]) if (n == n.flat[0]).all() else n


def at_least_two(n_images: float | np.ndarray, mean: np.ndarray) -> np.ndarray:
    """The number of images for each entry of a mean, as `FromMean` is given it; NaN where there are fewer than two."""
    n = np.asarray(n_images, np.float64)
    return np.broadcast_to(np.where(n < 2, np.nan, n), mean.shape)


def centred(drawn: np.ndarray, value: np.ndarray) -> np.ndarray:
    """[resample, *any], moved so that their mean is `value` [*any].

    A resample has some images twice, so what a function that is not linear makes of it lies to one side: the squared
    length of a mean, for instance, grows by as much as the images scatter.
    """
    finite = np.isfinite(drawn)
    mean = np.where(finite, drawn, 0.0).sum(0) / np.maximum(finite.sum(0), 1)
    return drawn + (value - mean)


def percentile_interval(replicates: np.ndarray, n_images: int) -> np.ndarray:
    """[resample, *any] -> [2, *any]: the middle 95 %, and `tail` beyond, by values that occur.

    Resamples that are NaN (they drew no image with a finite value) are left out; NaN if none is left.
    """
    if not np.isnan(replicates).any():
        ordered = np.sort(replicates, axis=0)
        beyond = int(tail(n_images) * (len(replicates) - 1))
        return np.stack([ordered[beyond], ordered[-1 - beyond]])
    columns = (column[~np.isnan(column)] for column in replicates.reshape(len(replicates), -1).T)
    bounds = [percentile_interval(kept, n_images) if len(kept) else (np.nan,) * 2 for kept in columns]
    return np.array(bounds).T.reshape(2, *replicates.shape[1:])


def tail(n_images: int) -> float:
    """The share of the resamples to leave out at either end; 0.025 where there are very many images.

    Resampled means of n values scatter like a normal variable with sqrt((n - 1) / n) of their standard error, for which
    Student's t with n - 1 degrees of freedom is what a 95 % interval needs (Hesterberg 2015, arXiv:1411.5279).
    """
    if n_images < 2:
        return 0.0
    return float(ndtr(-math.sqrt(n_images / (n_images - 1)) * stdtrit(n_images - 1, 0.975)))


def _blocks_of_means(cells: np.ndarray, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """[image, cell] -> the means of all resamples, [resample, some cells] at a time."""
    n_images, n_cells = cells.shape
    width = max(1, min(n_cells, BLOCK_BYTES // 8 // max(n_images, replicates)))
    for start in range(0, n_cells, width):
        some = cells[:, start : start + width]
        yield np.concatenate([_means(some, counts, n_images) for counts in draws(n_images, replicates, seed)])


def _means(cells: np.ndarray, counts: np.ndarray, size: int) -> np.ndarray:
    """[image, cell], [resample, image] -> [resample, cell]: means over the finite values of `size` images drawn.

    In float64 are only so many cells at once that they fit into a block, not a second copy of all values.
    """
    n_images, n_cells = cells.shape
    means, width = np.empty((len(counts), n_cells)), max(1, BLOCK_BYTES // 8 // n_images)
    for start in range(0, n_cells, width):
        block = slice(start, start + width)
        values = cells[:, block].astype(np.float64)
        finite = np.isfinite(values)
        if finite.all():
            means[:, block] = counts @ values / size
        else:
            with np.errstate(invalid="ignore"):  # 0 / 0 where a resample drew no finite value
                means[:, block] = counts @ np.where(finite, values, 0.0) / (counts @ finite.astype(np.float64))
    return means


def draws(n_images: int, replicates: int, seed: int, size: int | None = None) -> Iterator[np.ndarray]:
    """Multinomial counts [some resamples, image] of each image in each resample, the same for every call."""
    rng, size = np.random.default_rng(seed), size or n_images
    rows = max(1, BLOCK_BYTES // 8 // max(n_images, size))
    if replicates <= rows:
        yield _one_block(n_images, replicates, seed, size)
        return
    for start in range(0, replicates, rows):
        yield _counts(rng, n_images, min(rows, replicates - start), size)


@lru_cache(maxsize=2)
def _one_block(n_images: int, replicates: int, seed: int, size: int) -> np.ndarray:
    """All counts, drawn once for every metric."""
    counts = _counts(np.random.default_rng(seed), n_images, replicates, size)
    counts.flags.writeable = False
    return counts


def _counts(rng: np.random.Generator, n_images: int, n: int, size: int) -> np.ndarray:
    drawn = rng.integers(n_images, size=(n, size))
    drawn += n_images * np.arange(n)[:, None]
    return np.bincount(drawn.ravel(), minlength=n * n_images).reshape(n, n_images).astype(np.float64)


def values_of_function(
    function: FromMean, per_image: np.ndarray, replicates: int, seed: int, size: int | None = None
) -> np.ndarray:
    """[resample, *any]: the function of the means [resample, *axes], for which it needs all cells at once.

    `size` images are drawn for each resample; as many as there are if None.
    """
    n_images, cells = len(per_image), per_image.reshape(len(per_image), -1)
    size = size or n_images
    at_once = max(1, BLOCK_BYTES // 8 // cells.shape[1])
    results, of_size = [], n_finite(per_image) / n_images * size
    for counts in draws(n_images, replicates, seed, size):
        for start in range(0, len(counts), at_once):
            means = _means(cells, counts[start : start + at_once], size)
            results.append(function(means.reshape(-1, *per_image.shape[1:]), of_size))
    return np.concatenate(results)
