"""Sums over images that can be merged: the moments of a metric, and its means over resamples of the images.

Question: how do sums of floats become the same bits for any number of processes? Choice: they are always merged in the
same order, that of a fixed binary tree over slices of the images (`sink`); whoever merges two neighbours, and when,
does not matter. Sums of integers would need no order, but a scale that fits every metric, and one that overflows
nowhere.
"""

from dataclasses import dataclass

import numpy as np

from attnprobe.stats.interval import half_width

RESAMPLED_BYTES = 16 * 2**20
"""Largest size of the sums of one metric: 400 resamples of 5,242 cells. Of more cells there are fewer resamples."""

FEWEST = 100
"""Resamples below which there are none: the ends of an interval would have an error of a quarter of its half-width."""


@dataclass(frozen=True, slots=True, eq=False)
class Draw:
    """Counts of some images in every resample, and the choice of those whose values are kept.

    Attributes:
        counts: [replicate, image]: how often each is drawn.
        kept: [image], bool: those whose values are kept.
        n_kept: kept images of the whole run.
    """

    counts: np.ndarray
    kept: np.ndarray
    n_kept: int

    def images(self, start: int, stop: int) -> "Draw":
        """The same for the images at these positions."""
        return Draw(self.counts[:, start:stop], self.kept[start:stop], self.n_kept)


@dataclass(frozen=True, slots=True)
class Moments:
    """Mergeable sums over images, for each cell, of the values that are finite; all [*axes], float64.

    Attributes:
        n: number of finite values.
        mean: their mean; 0 where n is 0.
        m2: sum of their squared differences from the mean (Chan et al. 1979).
    """

    n: np.ndarray
    mean: np.ndarray
    m2: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Moments":
        """The moments of [image, *axes]."""
        finite = np.isfinite(values)
        n = finite.sum(0).astype(np.float64)
        values = np.where(finite, values, 0.0).astype(np.float64)
        mean = values.sum(0) / np.maximum(n, 1)
        return cls(n, mean, (np.where(finite, values - mean, 0.0) ** 2).sum(0))

    def merge(self, other: "Moments") -> "Moments":
        """The moments of both sets of images."""
        n = self.n + other.n
        share = other.n / np.maximum(n, 1)
        step = other.mean - self.mean
        return Moments(n, self.mean + step * share, self.m2 + other.m2 + step**2 * self.n * share)

    def mean_and_std(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean, NaN where there is no value, and standard deviation (n - 1), NaN where there are fewer than two."""
        std = np.sqrt(self.m2 / np.maximum(self.n - 1, 1))
        return np.where(self.n > 0, self.mean, np.nan), np.where(self.n > 1, std, np.nan)

    def normal_interval(self) -> np.ndarray:
        """[2, *axes]: mean -+ as many standard errors as Student's t takes; NaN where there are fewer than 2 values."""
        mean, std = self.mean_and_std()
        half = half_width(std, self.n)
        return np.stack([mean - half, mean + half])


@dataclass(frozen=True, slots=True)
class Resampled:
    """Sums over images for each resample, of the values that are finite; float64.

    Attributes:
        total: [replicate, *axes]: values, each as often as its image is drawn.
        weight: [replicate, *axes]: number of draws; [replicate, 1, ...] while every value is finite.
    """

    total: np.ndarray
    weight: np.ndarray

    @staticmethod
    def replicates(n_cells: int, at_most: int) -> int:
        """Number of resamples of a metric with so many cells."""
        n = min(at_most, RESAMPLED_BYTES // (8 * max(1, n_cells)))
        return n if n >= min(FEWEST, at_most) else 0

    @classmethod
    def of(cls, values: np.ndarray, counts: np.ndarray) -> "Resampled":
        """The sums of [image, *axes] for counts [replicate, image]."""
        finite = np.isfinite(values)
        flat = np.where(finite, values, 0.0).reshape(len(values), -1).astype(np.float64)
        if finite.all():
            weight = counts.sum(1).reshape(-1, *(1 for _ in values.shape[1:]))
        else:
            weight = (counts @ finite.reshape(len(values), -1).astype(np.float64)).reshape(-1, *values.shape[1:])
        return cls((counts @ flat).reshape(-1, *values.shape[1:]), weight)

    def merge(self, other: "Resampled") -> "Resampled":
        """The sums over both sets of images."""
        return Resampled(self.total + other.total, self.weight + other.weight)

    def means(self) -> np.ndarray:
        """[replicate, *axes]: the mean of each resample; NaN where it drew no finite value."""
        with np.errstate(invalid="ignore", divide="ignore"):
            return self.total / self.weight
