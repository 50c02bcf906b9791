"""Folding the values of many images into sums: which images are drawn how often, and whose values are kept.

Question: what of two models whose images are too many to keep, are they still compared image by image? Choice: on a
fixed subset, the images whose ids have the smallest hashes: the same in every run on the same images, whoever measures
them, and nearly the same where a few images differ. Means and intervals rest on all images; resamples are keyed by the
id, so that a group (`--group`) is drawn as a whole.
Question: and images with equal pixels? Choice: beyond the bound each counts, since to find copies the pixels of every
image would have to be remembered. Among the kept images copies are found, and counted once.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress

import numpy as np

from attnprobe.metrics.engine.sums import Draw
from attnprobe.metrics.engine.units import unit_names
from attnprobe.stats.poisson import REPLICATES, counts, hashed


@dataclass(frozen=True, slots=True)
class Folding:
    """Rule of folding for one run, a pure function of its image ids.

    Attributes:
        bound: units whose hash is at most this are kept.
        n_kept: images of these units; `n_units` of all.
        group: as in `measure`: names what is drawn, kept and counted together.
    """

    bound: int
    n_kept: int
    n_units: int
    group: str | None = None

    @classmethod
    def of(cls, image_ids: Sequence[str], keep_values: int, group: str | None = None) -> "Folding | None":
        """The rule that keeps `keep_values` units, those with the smallest hashes; None if the images are no more."""
        if len(image_ids) <= keep_values:
            return None
        names = unit_names(image_ids, group)
        hashes = np.fromiter(map(hashed, names), np.uint64, len(image_ids))
        units = np.unique(hashes)
        bound = units[min(keep_values, len(units)) - 1]
        return cls(int(bound), int((hashes <= bound).sum()), len(units), group)

    def draw(self, image_ids: Sequence[str]) -> Draw:
        """Counts of some images of the run, and which of them are kept."""
        names = unit_names(image_ids, self.group, require=False)
        return Draw(counts(names, REPLICATES), self._are_kept(names), self.n_kept)

    def kept(self, image_ids: Sequence[str]) -> list[str]:
        """Those of some images of the run whose values are kept."""
        return list(compress(image_ids, self._are_kept(unit_names(image_ids, self.group, require=False))))

    def _are_kept(self, names: Sequence[str]) -> np.ndarray:
        return np.array([hashed(name) <= self.bound for name in names], bool)
