"""Accuracies and their differences on the same images, with 95 % intervals."""

import math

import numpy as np

Z = 1.959963984540054
"""95 % of a normal distribution lies within so many standard deviations of its mean."""


def accuracy_interval(right: int, n: int) -> tuple[float, float]:
    """95 % interval of the share `right` / `n` (Wilson 1927), in [0, 1]; all of [0, 1] where n is 0."""
    if n == 0:
        return 0.0, 1.0
    p, width = right / n, 2 * (n + Z**2)
    centre, half = (2 * n * p + Z**2) / width, Z / width * math.sqrt(4 * n * p * (1 - p) + Z**2)
    return 0.0 if right == 0 else centre - half, 1.0 if right == n else centre + half


def no_accuracy_text(n_classes: int) -> str:
    """Sentence on a model that gives none of the labelled images a class of theirs, of which there are so many."""
    theirs = f"are not the {n_classes} classes of the images" if n_classes > 1 else "is not the one class of the images"
    return f"no accuracy: what the model gives {theirs}."


def accuracy_difference(before: np.ndarray, after: np.ndarray) -> tuple[float, float, float]:
    """Accuracy gained, and its 95 % interval, from which of the same images each model got right.

    Only images on which the two disagree count. The interval is Wald's with half an image added to each of the four
    kinds of images (Agresti and Min 2005), which holds for few images and for few disagreements, too.

    Args:
        before, after: [image], bool.
    """
    n, gained, lost = len(before), float((after & ~before).sum()), float((before & ~after).sum())
    middle, size = (gained - lost) / (n + 2), (gained + lost + 1) / (n + 2)
    half = Z * math.sqrt((size - middle**2) / (n + 2))
    return (gained - lost) / max(n, 1), max(-1.0, middle - half), min(1.0, middle + half)
