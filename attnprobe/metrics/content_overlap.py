"""Overlap of two blocks' attention that is specific to the image."""

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from attnprobe.core.metric import metric
from attnprobe.stats.bootstrap import at_least_two

BUCKETS = 1021
"""Sums with random signs that stand for the maps of a layer, entry j in sum j mod 1021: a count sketch (Charikar et al.
2002). A prime, so that the entries of a column, of a row and of a diagonal are spread."""

ROWS = 1024
"""About so many rows of a block's maps are followed: every n-th query where there are more, and several thresholds per
entry where there are fewer. Keeps the error below 0.02."""


def _beyond_other_images(mean: np.ndarray, n_images: float | np.ndarray) -> np.ndarray:
    """Mean sketches [..., layer, BUCKETS] and mean products [..., layer, layer], side by side -> [..., layer, layer].

    The covariance over images: the mean product of one image minus that of two different ones.
    """
    sketch, product = mean[..., :BUCKETS], mean[..., BUCKETS:]
    n = at_least_two(n_images, mean)[..., BUCKETS:]
    return (product - sketch @ sketch.swapaxes(-1, -2)) * n / (n - 1)


@metric(
    axes=("layer", "layer"),
    value_range=(-1.0, 1.0),
    needs_stochastic=True,
    needs_all_layers=True,
    needs_all_heads=True,
    from_mean=_beyond_other_images,
)
def content_overlap(maps: Tensor, *, seed: int = 0) -> Tensor:
    """Overlap of two blocks in one image beyond their overlap in two different images.

        C[l, m] = O[l, m] - O0[l, m],      O0[l, m] = mean over images n != n' of the overlap of A_n[l] with A_n'[m]

    with O the `map_overlap` of one image: O0 = O - C is its null, the block of another image. 0: what two blocks share
    is the same in all images (a place, a window, a sink); 1: it is all their own. On the diagonal O = 1, so C[l, l] is
    the share of a block's attention that goes another way in another image: 0 for maps that do not depend on it. Ours.

    All pairs of different images count, without keeping a map: sum_j min(p_j, q_j) is the chance that both p_j and q_j
    exceed a uniform random threshold, so the 0s and 1s of every entry against a fixed threshold of its own are kept,
    in sketches of 1021 sums, and their covariance over images is C. So it depends neither on the order of the images
    nor on chunks or processes, as a partner drawn for each image would, nor on one image chosen to compare with.
    Caveat: thresholds and sketches add an error, which the interval leaves out: a standard deviation of about 0.02 at
    most, and less the smaller C is (0.001 where 1 % of the attention varies between images).

    Args:
        seed: of the thresholds and the signs.

    Returns:
        [image, layer, sketch and products with the sketches of all layers]: what is averaged.
    """
    rows = maps.shape[2] * maps.shape[3]
    some, times = maps[..., :: max(1, rows // ROWS), :], max(1, ROWS // rows)
    thresholds, signs = _drawn((times, *some.shape[2:]), seed)
    thresholds, signs = thresholds.to(maps.device), signs.to(maps)
    above = signs.new_zeros(len(maps), signs.numel())  # zeros fill up the last part
    compared, sketches = above[:, : thresholds.numel()].view(-1, *thresholds.shape), []
    for layer in some.unbind(1):
        torch.gt(layer.unsqueeze(1), thresholds, out=compared)
        sketches.append((above.unflatten(-1, signs.shape) * signs).sum(-2))
    sketches = torch.stack(sketches, 1)
    sketches = sketches / (times * some.shape[2] * some.shape[3]) ** 0.5
    sketches = sketches + 0 * maps.sum((-3, -2, -1)).unsqueeze(-1)
    return torch.cat([sketches, sketches @ sketches.mT], -1)


@lru_cache(maxsize=16)
def _drawn(shape: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Thresholds [turn, head, query, key] in [0, 1), and signs [part, BUCKETS], the last part filled up."""
    generator = torch.Generator().manual_seed(seed)
    thresholds = torch.rand(shape, generator=generator)
    parts = -(-thresholds.numel() // BUCKETS)
    signs = torch.randint(2, (parts, BUCKETS), generator=generator).mul_(2).sub_(1)
    return thresholds, signs.float()
