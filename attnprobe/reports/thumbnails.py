"""What does each head's map look like, small?"""

import numpy as np

from attnprobe.core.browse import Browsable

IMAGES = 8
"""The mean over so many, evenly spread over the file, shows what a head does in all of them."""

SIDE = 32
"""Pixels of a thumbnail, at most; larger maps are averaged down."""


def mean_maps(maps: Browsable) -> tuple[np.ndarray | None, int]:
    """[layer, head, row, col], the mean softmax map of each head in the first stage, and of how many images.

    None where the first stage holds no softmax maps.
    """
    shape = maps.shapes()[0]
    if "weights" not in (site for site, _ in shape.sites):
        return None, 0
    images = sorted({int(i) for i in np.linspace(0, len(maps.image_ids) - 1, min(IMAGES, len(maps.image_ids)))})
    layers = [
        np.mean([smaller(maps.layer(shape.name, "weights", image, layer)) for image in images], axis=0)
        for layer in range(len(shape.layers))
    ]
    return np.stack(layers), len(images)


def smaller(maps: np.ndarray) -> np.ndarray:
    """[head, query, key] averaged over equal parts, to at most `SIDE` of each; the last part may be smaller."""
    for axis in (1, 2):
        step = -(-maps.shape[axis] // SIDE)
        starts = np.arange(0, maps.shape[axis], step)
        sizes = np.diff([*starts, maps.shape[axis]]).reshape([-1 if i == axis else 1 for i in range(3)])
        maps = np.add.reduceat(maps, starts, axis=axis) / sizes
    return maps
