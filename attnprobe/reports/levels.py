"""One number per block with its interval, by which a kind of collapse is judged, and that of the untrained network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from attnprobe.core.measurement import Measurement
from attnprobe.stats.interval import mean_of


@dataclass(frozen=True, slots=True, eq=False)
class Levels:
    """Numbers of blocks.

    Attributes:
        mean, low, high, untrained: [block]; NaN where unknown.
        numbers: of the blocks, from 1.
        n_images: measured.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    untrained: np.ndarray
    numbers: tuple[int, ...]
    n_images: int

    def then(self, function: Callable[[np.ndarray], np.ndarray]) -> "Levels":
        """Levels of a monotone function of the numbers; bounds change places where it falls."""
        low, high = function(self.low), function(self.high)
        low, high = np.minimum(low, high), np.maximum(low, high)
        return Levels(function(self.mean), low, high, function(self.untrained), self.numbers, self.n_images)

    def within(self, possible: tuple[float | None, float | None]) -> "Levels":
        """Levels whose bounds are possible values: an interval of few images can reach beyond what there is.

        What is cut off holds no value, so the interval covers as often as before. A bound never passes its mean: an
        effective rank is 1 or more, but 0 where all tokens are equal.
        """
        least, most = (np.full_like(self.mean, end if end is not None else other)
                       for end, other in zip(possible, (-np.inf, np.inf), strict=True))  # fmt: skip
        low, high = (
            np.maximum(self.low, np.minimum(least, self.mean)),
            np.minimum(self.high, np.maximum(most, self.mean)),
        )
        return Levels(self.mean, low, high, self.untrained, self.numbers, self.n_images)

    @classmethod
    def joined(cls, parts: "Sequence[Levels]") -> "Levels":
        """Levels of the blocks of several stages, in the order of their numbers."""
        numbers = np.concatenate([part.numbers for part in parts])
        order = np.argsort(numbers)
        mean, low, high, untrained = (
            np.concatenate([getattr(part, name) for part in parts])[order]
            for name in ("mean", "low", "high", "untrained")
        )
        n_images = min(part.n_images for part in parts)
        return cls(mean, low, high, untrained, tuple(numbers[order].tolist()), n_images)

    def or_larger(self, other: "Levels") -> "Levels":
        """The larger of two levels, block by block."""
        use = other.mean > self.mean
        pairs = ((self.mean, other.mean), (self.low, other.low), (self.high, other.high))
        mean, low, high = (np.where(use, theirs, ours) for ours, theirs in pairs)
        fresh = np.fmax(self.untrained, other.untrained)
        return Levels(mean, low, high, fresh, self.numbers, self.n_images)


def levels(m: Measurement) -> Levels:
    """Levels of the mean over everything but the first axis, the layer."""
    cells = np.ones(m.mean.shape[1:], bool)
    fresh = m.baselines.get("untrained")
    untrained = np.full(len(m.mean), np.nan) if fresh is None else fresh.mean[..., cells].mean(-1)
    return Levels(*mean_of(m, cells), untrained, m.block_numbers, m.n_images)


def diagonal(m: Measurement) -> Levels:
    """Levels of the diagonal of [layer, layer]."""
    fresh = m.baselines.get("untrained")
    untrained = np.full(len(m.mean), np.nan) if fresh is None else fresh.mean.diagonal()
    low, high = m.ci.diagonal(axis1=1, axis2=2)
    return Levels(m.mean.diagonal(), low, high, untrained, m.block_numbers, m.n_images)
