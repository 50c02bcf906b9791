"""Share of a head's attention pattern that is the same in every image."""

import numpy as np
import torch
from torch import Tensor

from attnprobe.core.metric import metric
from attnprobe.stats.bootstrap import at_least_two

BUCKETS = 251
"""Sums with random signs that stand for a map, entry j in sum j mod 251: a count sketch (Charikar et al. 2002). A prime
that does not divide usual numbers of tokens, so that the entries of a column, of a row and of a diagonal are spread."""


def _share(mean: np.ndarray, n_images: float | np.ndarray) -> np.ndarray:
    """Mean sketch and mean squared length [..., BUCKETS + 1] -> squared length of the mean over the latter.

    As it would be on very many images: the mean of n that have nothing in common is as long as one of them / sqrt(n).
    """
    common, total = np.square(mean[..., :-1]).sum(-1), mean[..., -1]
    seen = common / np.where(total == 0, 1.0, total)
    n = at_least_two(n_images, mean)[..., -1]
    return np.where(total == 0, 0.0, np.clip((n * seen - 1) / (n - 1), 0.0, 1.0))


@metric(axes=("layer", "head"), value_range=(0.0, 1.0), from_mean=_share)
def position_share(maps: Tensor, *, seed: int = 0) -> Tensor:
    """Share of a map's deviation from uniform attention that is the same in every image.

        P[l, h] = (n Q - 1) / (n - 1),      U = 1/K everywhere,
        Q = |mean over n images of (A - U)|^2 / mean over images of |A - U|^2

    1: the head attends by position alone, whatever is in the image; near 0: it follows content, or is noise. Ours. Maps
    are followed through sketches of 251 numbers, so that no mean map has to be kept. 0 for uniform attention; NaN for
    one image. Caveat: the sketches add an error, which the interval leaves out: a standard deviation of about
    (1 - P) (0.09 P + 0.1 / n), at most 0.025 with 64 images, 0.03 with 16 and 0.05 with two.

    Args:
        seed: of the signs.

    Returns:
        [image, layer, head, sum], and their squared length last: what is averaged.
    """
    generator = torch.Generator().manual_seed(seed)
    n_entries, n_keys = maps[0, 0, 0].numel(), maps.shape[-1]
    signs = (torch.randint(2, (n_entries,), generator=generator) * 2 - 1).to(maps)
    parts = -(-n_entries // BUCKETS)
    signed, sketches = maps.new_zeros(len(maps), maps.shape[2], parts * BUCKETS), []  # zeros fill up the last part
    for layer in maps.unbind(1):
        signed[..., :n_entries] = layer.flatten(-2)
        signed[..., :n_entries].sub_(1 / n_keys).mul_(signs)
        sketches.append(signed.unflatten(-1, (parts, BUCKETS)).sum(-2))
    sketch = torch.stack(sketches, 1)
    return torch.cat([sketch, sketch.square().sum(-1, keepdim=True)], -1)
