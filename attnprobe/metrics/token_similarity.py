"""Cosine similarity of block outputs: between the tokens of a layer, between layers, and between images."""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from attnprobe.core.errors import InputError, check_choice
from attnprobe.core.grid import TokenGrid
from attnprobe.core.metric import metric
from attnprobe.metrics.engine.linear_algebra import row_products
from attnprobe.stats.bootstrap import at_least_two


@metric(axes=("layer",), value_range=(-1.0, 1.0))
def token_similarity(tokens: Tensor) -> Tensor:
    """Mean cosine similarity of the outputs of a block, over all pairs of different tokens.

        S[l] = mean over i != j of cos(x_i, x_j) = (|sum_i u_i|^2 - sum_i |u_i|^2) / (T (T - 1)),   u_i = x_i / |x_i|

    The right-hand side costs O(T D) instead of O(T^2 D). Over-smoothing: 1 means that all tokens point the same way.
    The quantity behind arXiv:2104.12753 and arXiv:2203.06345. All tokens count, the class token included. NaN if there
    is only one token.
    Caveat: an offset that all tokens share, such as a bias, can raise it though they differ as before; read it beside
    the untrained baseline.
    """
    n_tokens = tokens.shape[-2]
    units = F.normalize(tokens, dim=-1)
    together = units.sum(-2).square().sum(-1)
    alone = units.square().sum((-2, -1))
    return (together - alone) / (n_tokens * (n_tokens - 1))


@metric(axes=("layer", "layer"), value_range=(-1.0, 1.0))
def token_layer_similarity(tokens: Tensor) -> Tensor:
    """Cosine similarity of the outputs of two blocks, for every pair of layers.

        F[p, r] = mean over all tokens t of cos(x_t[p], x_t[r])

    The feature version of `layer_similarity`: Zhou et al. 2021, arXiv:2103.11886, relate the two. A zero token has
    cosine 0.
    Caveat: blocks add to what came before, so neighbours are alike by construction, and only the untrained baseline
    tells how much that is.
    """
    by_token = F.normalize(tokens, dim=-1).transpose(1, 2)
    return row_products(by_token).mean(1)


TOKENS = ("either", "class", "mean")


def _between_images(mean: np.ndarray, n_images: float | np.ndarray) -> np.ndarray:
    """Mean unit vectors [..., layer, token, width] -> [..., layer]: mean cosine of two images, of the larger token."""
    n = at_least_two(n_images, mean)[..., 0]
    return ((n * np.square(mean).sum(-1) - 1) / (n - 1)).max(-1)


@metric(axes=("layer",), value_range=(-1.0, 1.0), from_mean=_between_images)
def image_similarity(tokens: Tensor, grid: TokenGrid, *, token: str = "either", clip: float = 10.0) -> Tensor:
    """Mean cosine similarity between the vectors of two different images, of the class token or of the mean patch.

        S[l] = mean over images n != n' of cos(x_n, x_n') = (n |mean over images of u|^2 - 1) / (n - 1),  u = x / |x|

    with x the output of block l, of the first prefix token or the mean over patches, whichever S is larger. 1: the
    network says the same of every image (representation collapse: arXiv:2110.09348, of self-supervised networks).
    Entries longer than `clip` times the median entry of their vector count as that long, for massive activations,
    which are the same for all images (arXiv:2402.17762), would be all that a cosine sees. The clipping is ours.
    Caveat: a class token starts as the same vector in every image, so the first blocks are near 1; it is the last that
    tells. An offset that all images share raises it though they differ as before.

    Args:
        token: "either", "class" (the first prefix token; the mean patch where there is none) or "mean".
        clip: above 1.

    Returns:
        [image, layer, token, width], unit vectors: what is averaged.

    Raises:
        InputError: clip is 1 or less.
    """
    check_choice("token", token, TOKENS)
    if not clip > 1:
        raise InputError(f"clip={clip} must be above 1, a multiple of the median entry.")
    first, mean = tokens[..., grid.prefix_tokens, :][..., :1, :], tokens[..., grid.patches, :].mean(-2, keepdim=True)
    wanted = {"mean": [mean], "class": [first if grid.prefix else mean]}.get(token, [first, mean])
    vectors = torch.cat(wanted, -2)
    bound = clip * vectors.abs().quantile(0.5, -1, keepdim=True)
    return F.normalize(torch.where(bound > 0, vectors.clamp(-bound, bound), vectors), dim=-1)
