"""Gram distance: how far the patch features of one network are from those of another, or of an earlier checkpoint."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import zip_longest

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attnprobe.core.errors import InputError
from attnprobe.core.grid import TokenGrid
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.measurement import Measurement
from attnprobe.metrics.head_importance import per_image


def gram_distance(
    first: Iterable[AttentionMaps], second: Iterable[AttentionMaps], *, bootstrap: int = 1000, seed: int = 0
) -> Measurement:
    """Distance between the Gram matrices of two networks' patch features of the same images.

        D[l] = |X X^T - Y Y^T|_F^2 / P^2

    X and Y: [patch, width], outputs of block l of the first and the second network, rows of length 1; P patches, prefix
    tokens aside. An entry of a Gram matrix is the cosine between two patches, so D is their mean squared difference,
    and the two widths may differ. Gram anchoring of Simeoni et al. 2025, DINOv3, arXiv:2508.10104, who train with
    |X X^T - Y Y^T|_F^2 of the last block; division by P^2 is ours, and makes sizes of images comparable.
    Caveat: it does not say which of the two is better, and is 0 for features that are rotated into one another.

    Args:
        first, second: maps with tokens, in any chunks, of the same images in the same order.
        bootstrap, seed: as for `measure`.

    Returns:
        A measurement over (layer,), from 0 to 4.

    Raises:
        InputError: no tokens, or other images, layers or patches.
    """
    image_ids, values = zip(*_distances(first, second), strict=True)
    axes, value_range = ("layer",), (0.0, 4.0)
    m = per_image(gram_distance, np.stack(values), image_ids, bootstrap, seed, axes=axes, value_range=value_range)
    return replace(m, site="weights")


def _distances(first: Iterable[AttentionMaps], second: Iterable[AttentionMaps]) -> Iterator[tuple[str, np.ndarray]]:
    """Image id and its distances [layer]."""
    for one, two in zip_longest(_patches(first), _patches(second)):
        if one is None or two is None:
            raise InputError("the Gram distance needs the same images of both networks, and one has more of them.")
        if one[0] != two[0]:
            raise InputError(f"the Gram distance needs the same images in the same order, got {one[0]} and {two[0]}.")
        if one[1:3] != two[1:3]:
            raise InputError(
                f"the Gram distance needs as many layers and patches of both networks, got {_facts(one)} and "
                f"{_facts(two)}."
            )
        yield one[0], (_cosines(one[3]) - _cosines(two[3])).square().mean((-2, -1)).numpy()


def _patches(chunks: Iterable[AttentionMaps]) -> Iterator[tuple[str, int, TokenGrid, Tensor]]:
    """Image id, number of layers, grid without prefix and patch features [layer, patch, width], image by image."""
    kept = None
    for maps in chunks:
        kept = kept or (maps.stage, maps.site)
        if (maps.stage, maps.site) != kept:  # a site more comes with the same tokens
            continue
        if maps.tokens is None:
            raise InputError("the Gram distance needs tokens: capture(..., tokens=True), or --what tokens.")
        grid = replace(maps.grid, prefix=(), patch=(1, 1), positions=tuple(maps.grid.patch_positions))
        for image, tokens in zip(maps.image_ids, maps.tokens, strict=True):
            yield image, len(tokens), grid, tokens[:, maps.grid.patches]


def _facts(side: tuple[str, int, TokenGrid, Tensor]) -> str:
    return f"{side[1]} layers of {side[2].patches_in_words}"


def _cosines(patches: Tensor) -> Tensor:
    unit = F.normalize(patches.to(torch.float64), dim=-1)
    return unit @ unit.mT
