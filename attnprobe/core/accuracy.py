"""How sure is an accuracy, and the difference of two on the same images?"""

import math

import numpy as np

Z = 1.959963984540054
"""Of a normal distribution, 95 % lie within so many standard deviations."""


def accuracy_interval(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a share of `right` among `n` (Wilson 1927), in [0, 1]; all of it where n is 0."""
    if n == 0:
        return 0.0, 1.0
    share, z = right / n, Z * Z / n
    middle, half = share + z / 2, Z * math.sqrt(share * (1 - share) / n + z / n / 4)
    return max(0.0, (middle - half) / (1 + z)), min(1.0, (middle + half) / (1 + z))


def accuracy_difference(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """What the accuracy gained, and its 95 % interval, from which of the same images each got right.

    Only images on which the two disagree count. The interval is Wald's with half an image added to each of the four
    kinds of images (Agresti and Min 2005), which holds for few images and for few disagreements, too.

    Args:
        before, after: [image], bool.
    """
    n, gained, lost = len(before), float((after & ~before).sum()), float((before & ~after).sum())
    middle, size = (gained - lost) / (n + 2), (gained + lost + 1) / (n + 2)
    half = Z * math.sqrt((size - middle**2) / (n + 2))
    return (gained - lost) / max(n, 1), max(-1.0, middle - half), min(1.0, middle + half)
