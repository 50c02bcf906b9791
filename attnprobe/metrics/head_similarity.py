"""Do the heads of one layer look at the same places?"""

from typing import Any

import torch
from torch import Tensor

from attnprobe.core.measurement import metric


def _range(stochastic: bool, **_: Any) -> tuple[float, float]:
    return (0.0, 1.0) if stochastic else (-1.0, 1.0)


@metric(axes=("layer", "head", "head"), value_range=(-1.0, 1.0), narrow_range=_range)
def head_similarity(maps: Tensor) -> Tensor:
    """Cosine similarity of whole attention maps, for every pair of heads of a layer.

        C[l, h, g] = <A[l, h], A[l, g]> / (|A[l, h]| |A[l, g]|)      over all Q x K entries

    Ours: Zhou et al. 2021, arXiv:2103.11886, compare heads inside a block but the pooling is not known. Maps without
    negative entries are similar by construction (1 if both are uniform); `head_divergence` has no such floor. A head
    that is zero everywhere has similarity 0 with every head, itself included.

    Args:
        maps: [image, layer, head, query, key].

    Returns:
        [image, layer, head, head].
    """
    flat = maps.flatten(3)
    products = flat @ flat.mT
    squared_length = products.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(squared_length == 0, 0.0, squared_length.rsqrt())
    return products * scale.unsqueeze(-1) * scale.unsqueeze(-2)
