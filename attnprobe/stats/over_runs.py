"""Intervals of a method's mean over a few runs, each measured on the same images.

Question: which spread is it that counts? Choice: both. Other runs of the recipe would differ, and so would other
images. The runs' means scatter by the first, and by what images do to each run alone; what images do to all runs of
a method alike is added to it. A variance made of several mean squares has the degrees of freedom of Satterthwaite
1946, and is then good for Student's t; Clark 1973, "The language-as-fixed-effect fallacy", asks for the same of
subjects and words (quasi-F).
Question: why not the two-level bootstrap (runs, then images)? Of runs there are few. In
`examples/benchmarks/coverage_of_runs.py`, values with known variances of runs and images, 2 to 10 runs, 8 or 64
images, the bootstrap covers 63 to 98 %, Welch's t on run means 39 to 98 %, pooled variances 35 to 99 %, this 93 to
99 %: 49 of 60 settings within 93 to 97, and above that where a method has two or three runs or runs do not differ.
Reconsider for many runs of few images.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import stdtr, stdtrit


@dataclass(frozen=True, slots=True, eq=False)
class Runs:
    """One number per cell of each run of a method, and its scatter over the images.

    Attributes:
        value: [run, *cells].
        scatter: [run, some, *cells]: the sum of products of two runs' over the second axis is the covariance that the
            choice of images gives their values. Of means over images see `scatter_of_mean`; of other numbers, centred
            resamples over sqrt(resamples - 1).
        n_images: number of images measured.
    """

    value: np.ndarray
    scatter: np.ndarray
    n_images: int

    @property
    def n(self) -> int:
        return len(self.value)


@dataclass(frozen=True, slots=True, eq=False)
class Estimate:
    """A mean of run means, or the difference of two, with its 95 % interval; all [*cells], `ci` [2, *cells].

    `p` is two-sided, of 0; `run_std` the standard deviation of runs of one method, pooled where there are two.
    """

    mean: np.ndarray
    ci: np.ndarray
    p: np.ndarray
    run_std: np.ndarray


def scatter_of_mean(per_image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[run, image, *cells] -> the means [run, *cells] over images that are finite in all runs, and their scatter."""
    usable = np.isfinite(per_image).all(0)
    n = usable.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(usable, per_image, 0.0).sum(1) / n
        scatter = np.where(usable, per_image - mean[:, None], 0.0) / np.sqrt(n * (n - 1.0))
    return mean, scatter


def estimate(runs: Runs, minus: Runs | None = None) -> Estimate:
    """Mean over runs with its interval, or its difference from another method on the same images.

    Each method needs two runs at least; with two images at least, their scatter is part of the interval.
    """
    sides = [(1.0, runs)] if minus is None else [(1.0, runs), (-1.0, minus)]
    mean = np.asarray(sum(sign * side.value.mean(0) for sign, side in sides))
    own = [side.value.var(0, ddof=1) / side.n for _, side in sides]
    moved = np.square(sum(sign * side.scatter.mean(0) for sign, side in sides)).sum(0)
    alone = [_alone(side) / side.n for _, side in sides]
    common = moved - sum(alone)  # what images do to all runs of a method; the rest is in the scatter of runs
    parts = [(part, side.n - 1) for part, (_, side) in zip(own, sides, strict=True)]
    of_images = [(moved, runs.n_images - 1)]
    of_images += [(part, (side.n - 1) * (side.n_images - 1)) for part, (_, side) in zip(alone, sides, strict=True)]
    seen = common > 0
    variance = sum(own) + np.where(seen, common, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        spread = sum(part**2 / df for part, df in parts) + np.where(
            seen, sum(part**2 / df for part, df in of_images if df > 0), 0.0
        )
        df = np.where(spread > 0, variance**2 / spread, 1.0)
        error = np.sqrt(variance)
        half = np.where(error > 0, stdtrit(df, 0.975) * error, 0.0)
        p = np.where(error > 0, 2 * stdtr(df, -np.abs(mean) / error), np.where(mean == 0, 1.0, 0.0))
    known = np.isfinite(mean) & np.isfinite(variance)
    freedom = sum(side.n - 1 for _, side in sides)
    run_std = np.sqrt(sum(side.value.var(0, ddof=1) * (side.n - 1) for _, side in sides) / freedom)
    ci = np.where(known, np.stack([mean - half, mean + half]), np.nan)
    return Estimate(mean, ci, np.where(known, p, np.nan), run_std)


def _alone(side: Runs) -> np.ndarray:
    """[*cells]: variance over images of a run beyond that of all runs of its method."""
    own = side.scatter - side.scatter.mean(0)
    return np.square(own).sum((0, 1)) / (side.n - 1)
