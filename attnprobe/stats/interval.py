"""Student's t intervals of means, and ranges outside which no interval reaches."""

from collections.abc import Iterable

import numpy as np
from scipy.special import stdtrit

from attnprobe.core.measurement import Measurement


def half_width(std: np.ndarray, n: np.ndarray) -> np.ndarray:
    """Half-width of the 95 % t-interval of a mean, from the sample standard deviation (ddof=1); NaN where n < 2."""
    enough = n > 1
    half = stdtrit(np.where(enough, n - 1, 1), 0.975) * std / np.sqrt(np.where(enough, n, 1))
    return np.where(enough, half, np.nan)


def mean_of(m: Measurement, cells: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean over some of the cells, and the bounds of its 95 % interval over images.

    From the means of the single images, or of resamples that were drawn while measuring. Where neither are known, the
    mean of the cells' bounds replaces them: often far too wide, never too narrow, since a mean varies at most as much
    as its cells do on average.

    Args:
        cells: bool, of the shape of `m.mean`, or of its last axes: then there is one mean per position of the others.
    """
    mean, low, high = (values[..., cells].mean(-1) for values in (m.mean, *m.ci))
    if m.from_mean is not None:
        return mean, low, high
    if m.replicates is not None:
        spread, _ = _spread(m.replicates[..., cells].mean(-1))
        half = stdtrit(m.n_images - 1, 0.975) * spread
    elif m.per_image is not None and 2 <= len(m.per_image) == m.n_images:
        half = half_width(*_spread(m.per_image[..., cells].mean(-1, dtype=np.float64)))
    else:
        return mean, low, high
    low, high = within(np.stack([mean - half, mean + half]), m.value_range)
    return mean, low, high


def _spread(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sample standard deviation over the first axis of the values that are finite, and their number."""
    n = np.isfinite(values).sum(0)
    finite = np.where(np.isfinite(values), values, np.nan)
    squares = np.nansum((finite - np.nansum(finite, 0) / np.maximum(n, 1)) ** 2, 0)
    return np.sqrt(squares / np.maximum(n - 1, 1)), n


def within(values: np.ndarray, value_range: tuple[float | None, float | None]) -> np.ndarray:
    """The values clipped to a range; None for no bound."""
    low, high = value_range
    return np.clip(values, -np.inf if low is None else low, np.inf if high is None else high)


def within_differences(values: np.ndarray, measured: Iterable[Measurement]) -> np.ndarray:
    """The values clipped to what differences between numbers in the ranges of these measurements can be."""
    lows, highs = zip(*(m.value_range for m in measured), strict=True)
    if None in lows or None in highs:
        return values
    most = max(highs) - min(lows)
    return within(values, (-most, most))
