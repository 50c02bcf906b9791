"""Student's t intervals of means."""

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

    From the means of the single images. Where these are not known, the mean of the cells' bounds replaces them: often
    far too wide, never too narrow, since a mean varies at most as much as its cells do on average.

    Args:
        cells: bool, of the shape of `m.mean`, or of its last axes: then there is one mean per position of the others.
    """
    mean, low, high = (values[..., cells].mean(-1) for values in (m.mean, *m.ci))
    if m.per_image is None or m.from_mean is not None or len(m.per_image) < 2:
        return mean, low, high
    each = m.per_image[..., cells].mean(-1, dtype=np.float64)
    n = np.isfinite(each).sum(0)
    scatter = np.where(np.isfinite(each), each, np.nan)
    spread = np.sqrt(np.nansum((scatter - np.nansum(scatter, 0) / np.maximum(n, 1)) ** 2, 0) / np.maximum(n - 1, 1))
    half = half_width(spread, n)
    low, high = within(np.stack([mean - half, mean + half]), m.value_range)
    return mean, low, high


def within(values: np.ndarray, value_range: tuple[float | None, float | None]) -> np.ndarray:
    """The values clipped to a range; None for no bound."""
    low, high = value_range
    return np.clip(values, -np.inf if low is None else low, np.inf if high is None else high)
