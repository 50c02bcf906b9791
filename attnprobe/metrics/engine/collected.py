"""Values of one metric image by image, and the maps among them that are not finite."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce

import numpy as np

from attnprobe.core.maps import AttentionMaps
from attnprobe.stats.interval import half_width

KEEP_BYTES = 128 * 2**20
"""Values of one metric are kept up to this size: `similar_blocks` of 41,000 images and 16 layers, for example."""

BLOCK_BYTES = 16 * 2**20


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


class Collected:
    """The values of one metric, image by image: all of them up to `KEEP_BYTES`, only their moments beyond."""

    def __init__(self) -> None:
        self.n_images = self.n_excluded = self._bytes = 0
        self._kept: list[np.ndarray] = []
        self._folded: Moments | None = None

    def add(self, values: np.ndarray) -> np.ndarray:
        """Add [image, *axes]; returns which of these images are finite everywhere, [image]."""
        finite = np.asarray(np.isfinite(values.reshape(len(values), -1)).all(1))
        self.n_images += len(values)
        self.n_excluded += int((~finite).sum())
        self._bytes += values.nbytes
        self._kept.append(values)
        if self._bytes > KEEP_BYTES:
            parts = map(Moments.of, self._kept)
            self._folded = reduce(Moments.merge, parts, self._folded or next(parts))
            self._kept = []
        return finite

    @property
    def per_image(self) -> np.ndarray | None:
        """[image, *axes], or None when there were too many."""
        return np.concatenate(self._kept) if self._folded is None else None

    def moments(self) -> Moments:
        """Sums over all images; from kept values they do not depend on the sizes in which these came."""
        if self._folded is not None:
            return self._folded
        values = np.concatenate(self._kept)
        length = max(1, BLOCK_BYTES // max(1, values[0].size * 8))
        blocks = (values[start : start + length] for start in range(0, len(values), length))
        return reduce(Moments.merge, map(Moments.of, blocks))


def maps_not_finite(maps: AttentionMaps, images: np.ndarray) -> Iterator[str]:
    """Names of maps with NaN or infinities, as "image val/7, block 3 (blocks.2.attn), head 5"; numbers count from 1.

    None if all are finite: then the metric has no value there, as the distance of a head that attends to no patch.

    Args:
        images: [image], bool: those for which a metric was not finite; no others are searched.
    """
    for i in np.flatnonzero(images):
        finite = maps.values[i].isfinite().all(-1).all(-1)
        for layer, head in (~finite).nonzero().tolist():
            name = f" ({maps.layers[layer]})" if maps.layers else ""
            yield f"image {maps.image_ids[i]}, block {layer + 1}{name}, head {head + 1}"
