"""Do all images end up as the same vector?"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attnprobe.core.errors import InputError
from attnprobe.core.maps import TokenGrid
from attnprobe.core.measurement import metric


def _names(grid: TokenGrid, **_: Any) -> dict[str, list[Any]]:
    return {"token": [*grid.prefix[:1], "mean"]}


def _between_images(mean: np.ndarray, n_images: int) -> np.ndarray:
    """Mean unit vectors [..., width] -> [...]: mean cosine of two different images."""
    if n_images < 2:
        return np.full(mean.shape[:-1], np.nan)
    return (n_images * np.square(mean).sum(-1) - 1) / (n_images - 1)


@metric(axes=("layer", "token"), value_range=(-1.0, 1.0), coords=_names, from_mean=_between_images)
def image_similarity(tokens: Tensor, grid: TokenGrid, *, clip: float = 10.0) -> Tensor:
    """Mean cosine similarity between the vectors of two different images, of the class token and of the mean patch.

        S[l, t] = mean over images n != n' of cos(x_n, x_n') = (n |mean over images of u|^2 - 1) / (n - 1),  u = x / |x|

    with x the output of block l: of the first prefix token, and of the mean over patches. 1: the network says the same
    of every image (representation collapse: arXiv:2110.09348, of self-supervised networks). Entries longer than `clip`
    times the median entry of their vector count as that long, for massive activations, which are the same for all
    images (arXiv:2402.17762), would be all that a cosine sees. The clipping is ours.
    Caveat: a class token starts as the same vector in every image, so the first blocks are near 1; it is the last that
    tells. An offset that all images share raises it though they differ as before.

    Args:
        tokens: [image, layer, token, width], the output of each block.
        grid: which tokens are patches.
        clip: above 1.

    Returns:
        [image, layer, token, width], unit vectors: what is averaged.

    Raises:
        InputError: clip is 1 or less.
    """
    if not clip > 1:
        raise InputError(f"clip={clip} must be above 1, a multiple of the median entry.")
    n = grid.n_prefix
    vectors = torch.stack([*tokens[..., : min(n, 1), :].unbind(-2), tokens[..., n:, :].mean(-2)], -2)
    bound = clip * vectors.abs().quantile(0.5, -1, keepdim=True)
    return F.normalize(torch.where(bound > 0, vectors.clamp(-bound, bound), vectors), dim=-1)
