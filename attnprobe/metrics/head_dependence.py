"""Statistical dependence between the heads of a layer."""

import torch
from torch import Tensor

from attnprobe.core.metric import metric
from attnprobe.metrics.engine.hsic import gram, hsic, normalised


@metric(axes=("layer", "head", "head"), value_range=(-1.0, 1.0), needs_square=True, from_mean=normalised)
def head_dependence(maps: Tensor, *, estimator: str = "unbiased") -> Tensor:
    """Normalised HSIC between the rows of two heads, for every pair of heads of a layer.

        N[l, h, g] = mean HSIC(K_h, K_g) / sqrt(mean HSIC(K_h, K_h) mean HSIC(K_g, K_g)),      means over images

    with K_h the inner products of the rows of head h, centred; samples are the queries. The dependence that heads which
    explain away each other should not have (arXiv:2105.14850); this use of it is ours. About 0 for independent heads
    (above 0 with estimator="biased"). A head whose queries all attend alike depends on nothing: 0, with itself too.

    Caveat: neither the keys that heads attend to nor how far they are from uniform attention counts: heads with
    disjoint keys can be fully dependent, which `head_similarity` and `head_divergence` call different, and so can a
    sharp and a flat one.

    Args:
        estimator: "unbiased" or "biased", see `map_cka`.

    Returns:
        [image, layer, head, head], the HSIC that is averaged.
    """
    return torch.stack([hsic(*gram(layer), estimator) for layer in maps.unbind(1)], 1)
