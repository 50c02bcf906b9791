"""How sure would a number be on other numbers of images?"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Precision:
    """The 95 % interval that a number would have on so many images.

    Attributes:
        sizes: numbers of images, rising; [size].
        low, high: bounds of the middle 95 % of the number on that many images, [size].
        value: the number on all images there are.
        n_images: how many that is; what is said about more of them trusts that these stand for the others.
        of: in words, the number.
    """

    sizes: tuple[int, ...]
    low: np.ndarray
    high: np.ndarray
    value: float
    n_images: int
    of: str = ""

    def enough(self, half_width: float) -> int | None:
        """The smallest of the sizes from which on the interval is at most `half_width` to either side; None if none."""
        narrow = (self.high - self.low) / 2 <= half_width
        stays = np.logical_and.accumulate(narrow[::-1])[::-1]
        return self.sizes[int(np.argmax(stays))] if stays.any() else None
