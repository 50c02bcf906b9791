"""Values of one metric image by image, or folded into sums, and the maps among them that are not finite."""

from collections.abc import Iterator
from functools import reduce

import numpy as np

from attnprobe.core.maps import AttentionMaps
from attnprobe.metrics.engine.sums import Draw, Moments, Resampled

KEEP_BYTES = 128 * 2**20
"""Values of one metric are kept up to this size: `similar_blocks` of 41,000 images and 16 layers, for example."""

BLOCK_BYTES = 16 * 2**20


class Collected:
    """The values of one metric: every image's up to `KEEP_BYTES`, only their moments beyond.

    Images that come with a `Draw` are folded as they come: into moments, into sums for each resample, and into the
    values of the few images that are kept, if all of these fit into `KEEP_BYTES`.

    Attributes:
        n_images: images so far; `n_excluded` of them had a value that is not finite in some cell.
        resampled: sums for each resample; None where values were not folded, or have too many cells.
    """

    def __init__(self) -> None:
        self.n_images = self.n_excluded = self._bytes = 0
        self.resampled: Resampled | None = None
        self._kept: list[np.ndarray] | None = []
        self._moments: Moments | None = None

    @classmethod
    def of(
        cls,
        n_images: int,
        n_excluded: int,
        kept: np.ndarray | None,
        moments: Moments | None,
        resampled: Resampled | None,
    ) -> "Collected":
        """A collection from its parts; `moments` are None where every image is kept."""
        made = cls()
        made.n_images, made.n_excluded, made.resampled = n_images, n_excluded, resampled
        made._kept, made._moments = None if kept is None else [kept], moments
        return made

    def add(self, values: np.ndarray, draw: Draw | None = None) -> np.ndarray:
        """Add [image, *axes]; returns which of these images are finite everywhere, [image]."""
        finite = np.asarray(np.isfinite(values.reshape(len(values), -1)).all(1))
        self.n_images += len(values)
        self.n_excluded += int((~finite).sum())
        if draw is not None:
            self._fold(values, draw)
        elif self._kept is None:
            self._sum(Moments.of(values))
        else:
            self._bytes += values.nbytes
            self._kept.append(values)
            if self._bytes > KEEP_BYTES:
                for part in self._kept:
                    self._sum(Moments.of(part))
                self._kept = None
        return finite

    def merge(self, other: "Collected") -> None:
        """Add what was collected of the images that follow."""
        if other._moments is None:
            assert other._kept is not None, "what is not folded is kept"
            for values in other._kept:
                self.add(values)
            return
        self.n_images += other.n_images
        self.n_excluded += other.n_excluded
        self._kept = None if self._kept is None or other._kept is None else [*self._kept, *other._kept]
        self._sum(other._moments)
        if other.resampled is not None:
            self.resampled = other.resampled if self.resampled is None else self.resampled.merge(other.resampled)

    @property
    def folded(self) -> bool:
        """True if there are sums of images whose values were not kept."""
        return self._moments is not None

    @property
    def per_image(self) -> np.ndarray | None:
        """[image, *axes], of all images or, folded with a draw, of those that are kept; None if they are too many."""
        if self._kept is not None and len(self._kept) > 1:
            self._kept = [np.concatenate(self._kept)]  # instead of its parts, or all values would be there twice
        return None if self._kept is None else self._kept[0]

    def moments(self) -> Moments:
        """Sums over all images; from kept values they do not depend on the sizes in which these came."""
        if self._moments is not None:
            return self._moments
        values = self.per_image
        assert values is not None, "what is not folded is kept"
        length = max(1, BLOCK_BYTES // max(1, values[0].size * 8))
        blocks = (values[start : start + length] for start in range(0, len(values), length))
        return reduce(Moments.merge, map(Moments.of, blocks))

    def with_units(self, per_image: np.ndarray) -> "Collected":
        """The same with one row per unit; moments are then of the units, unless values were folded."""
        if self.folded:
            return Collected.of(self.n_images, self.n_excluded, per_image, self._moments, self.resampled)
        made = Collected()
        made.add(per_image)
        return made

    def _fold(self, values: np.ndarray, draw: Draw) -> None:
        row_bytes = values[0].nbytes
        if self._kept is not None:
            self._kept = None if draw.n_kept * row_bytes > KEEP_BYTES else [*self._kept, values[draw.kept]]
        self._sum(Moments.of(values))
        counts = draw.counts[: Resampled.replicates(values[0].size, len(draw.counts))]
        if len(counts):
            found = Resampled.of(values, counts)
            self.resampled = found if self.resampled is None else self.resampled.merge(found)

    def _sum(self, moments: Moments) -> None:
        self._moments = moments if self._moments is None else self._moments.merge(moments)


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
