"""How sure is a mean over images?

The percentile bootstrap: draw as many images as there are, with replacement, and take the mean again; the middle 95 %
of such means are the interval. Every metric of one measurement draws the same images, so that derived numbers, computed
from the resampled means as from the mean itself, stay consistent with one another.
"""

from collections.abc import Callable, Iterator

import numpy as np

from attnprobe.core.measurement import Measurement

BLOCK_BYTES = 32 * 2**20
"""Largest temporary array."""


def resampled_means(m: Measurement, at_most: int | None = None) -> np.ndarray | None:
    """[resample, *axes]: the mean over images of each resample, or what `m.from_mean` makes of it.

    There are `m.settings["bootstrap"]` of them, or `at_most`.

    None where there is nothing to resample: fewer than two images, no per-image values, or the bootstrap switched off.
    """
    replicates = min(m.settings["bootstrap"], at_most or m.settings["bootstrap"])
    if m.per_image is None or m.n_images < 2 or replicates == 0:
        return None
    if m.from_mean is not None:
        return values_of_function(m.from_mean, m.per_image, replicates, m.settings["bootstrap_seed"])
    cells = m.per_image.reshape(m.n_images, -1)
    means = np.concatenate(list(_blocks_of_means(cells, replicates, m.settings["bootstrap_seed"])), axis=1)
    return means.reshape(replicates, *m.per_image.shape[1:])


def interval_of_mean(per_image: np.ndarray, replicates: int, seed: int) -> np.ndarray:
    """[2, *axes]: bounds of the 95 % interval of the mean of [image, *axes], image by image where it is finite."""
    cells = per_image.reshape(len(per_image), -1)
    bounds = [percentile_interval(means) for means in _blocks_of_means(cells, replicates, seed)]
    return np.concatenate(bounds, axis=1).reshape(2, *per_image.shape[1:])


def interval_of_function(
    function: Callable[[np.ndarray], np.ndarray], per_image: np.ndarray, replicates: int, seed: int
) -> np.ndarray:
    """[2, *axes]: bounds of the 95 % interval of a function of the mean; see `Metric.from_mean`."""
    return percentile_interval(values_of_function(function, per_image, replicates, seed))


def percentile_interval(replicates: np.ndarray) -> np.ndarray:
    """[resample, *any] -> [2, *any]: the middle 95 %, by values that occur, so that counts stay counts.

    Resamples that are NaN (they drew no image with a finite value) are left out; NaN if none is left.
    """
    if not np.isnan(replicates).any():
        ordered, n = np.sort(replicates, axis=0), len(replicates)
        return np.stack([ordered[int(0.025 * (n - 1))], ordered[-1 - int(0.025 * (n - 1))]])
    columns = replicates.reshape(len(replicates), -1).T
    bounds = [
        percentile_interval(kept) if len(kept := column[~np.isnan(column)]) else (np.nan,) * 2 for column in columns
    ]
    return np.array(bounds).T.reshape(2, *replicates.shape[1:])


def _blocks_of_means(cells: np.ndarray, replicates: int, seed: int) -> Iterator[np.ndarray]:
    """[image, cell] -> the means of all resamples, [resample, some cells] at a time."""
    n_images, n_cells = cells.shape
    width = max(1, min(n_cells, BLOCK_BYTES // 8 // max(n_images, replicates)))
    for start in range(0, n_cells, width):
        values = cells[:, start : start + width].astype(np.float64)
        finite = np.isfinite(values)
        all_finite = finite.all()
        if not all_finite:
            values, weights = np.where(finite, values, 0.0), finite.astype(np.float64)
        means = []
        for counts in draws(n_images, replicates, seed):
            with np.errstate(invalid="ignore"):  # 0 / 0 where a resample drew no finite value
                means.append(counts @ values / (n_images if all_finite else counts @ weights))
        yield np.concatenate(means)


def draws(n_images: int, replicates: int, seed: int, size: int | None = None) -> Iterator[np.ndarray]:
    """How often each resample draws each image: multinomial counts [some resamples, image], the same for every call."""
    rng, size = np.random.default_rng(seed), size or n_images
    rows = max(1, BLOCK_BYTES // 8 // max(n_images, size))
    for start in range(0, replicates, rows):
        n = min(rows, replicates - start)
        drawn = rng.integers(n_images, size=(n, size)) + n_images * np.arange(n)[:, None]
        yield np.bincount(drawn.ravel(), minlength=n * n_images).reshape(n, n_images).astype(np.float64)


def values_of_function(
    function: Callable[[np.ndarray], np.ndarray],
    per_image: np.ndarray,
    replicates: int,
    seed: int,
    size: int | None = None,
) -> np.ndarray:
    """[resample, *any]: the function of the means [resample, *axes], for which it needs all cells at once.

    `size` images are drawn for each resample; as many as there are if None.
    """
    n_images, values = len(per_image), per_image.reshape(len(per_image), -1).astype(np.float64)
    finite = np.isfinite(values)
    values, weights = np.where(finite, values, 0.0), finite.astype(np.float64)
    at_once = max(1, BLOCK_BYTES // 8 // values.shape[1])
    results = []
    for counts in draws(n_images, replicates, seed, size):
        for start in range(0, len(counts), at_once):
            some = counts[start : start + at_once]
            with np.errstate(invalid="ignore"):  # 0 / 0 where a resample drew no finite value
                means = some @ values / ((size or n_images) if finite.all() else some @ weights)
            results.append(function(means.reshape(len(some), *per_image.shape[1:])))
    return np.concatenate(results)
