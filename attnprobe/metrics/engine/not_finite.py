"""Which maps hold something that is not a number?"""

from collections.abc import Iterator
from itertools import islice

import numpy as np

from attnprobe.core.maps import AttentionMaps


def maps_not_finite(maps: AttentionMaps, images: np.ndarray, at_most: int) -> list[str]:
    """Maps with NaN or infinities, in words, looked for among some images only.

    Args:
        maps: some images.
        images: [image], where to look: those of which a metric was not finite.
        at_most: how many to name.

    Returns:
        Such as "image val/7, block 3 (blocks.2.attn), head 5"; numbers count from 1. Empty if all are finite: then the
        metric has no value there, as the distance of a head that looks at no patch.
    """
    return list(islice(_named(maps, images), max(0, at_most)))


def _named(maps: AttentionMaps, images: np.ndarray) -> Iterator[str]:
    for i in np.flatnonzero(images):
        finite = maps.values[i].isfinite().all(-1).all(-1)
        for layer, head in (~finite).nonzero().tolist():
            name = f" ({maps.layers[layer]})" if maps.layers else ""
            yield f"image {maps.image_ids[i]}, block {layer + 1}{name}, head {head + 1}"
