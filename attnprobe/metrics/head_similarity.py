"""Cosine similarity between the heads of a layer."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from attnprobe.core.metric import metric
from attnprobe.metrics.engine.heads import cluster_summary, from_cosine
from attnprobe.metrics.engine.linear_algebra import row_products


def signed_unless_stochastic(stochastic: bool, **_: Any) -> tuple[float, float]:
    """The range of a cosine; maps without negative entries have no negative one."""
    return (0.0, 1.0) if stochastic else (-1.0, 1.0)


@metric(
    axes=("layer", "head", "head"), value_range=(-1.0, 1.0), narrow_range=signed_unless_stochastic,
    summarise=partial(cluster_summary, distance=from_cosine),
)  # fmt: skip
def head_similarity(maps: Tensor, *, cut: float = 0.1) -> Tensor:
    """Cosine similarity of whole attention maps, for every pair of heads of a layer.

        C[l, h, g] = <A[l, h], A[l, g]> / (|A[l, h]| |A[l, g]|)      over all Q x K entries

    Ours: Zhou et al. 2021, arXiv:2103.11886, compare heads inside a block but the pooling is not known. A head that is
    zero everywhere has similarity 0 with every head, itself included.

    The summary clusters the heads of each layer by the distance 1 - C of the mean over images (average linkage).

    Caveat: maps without negative entries are similar by construction, as in `layer_similarity` (1 if both are uniform;
    `head_divergence` calls near-uniform heads alike, too). Queries that attend to few keys outweigh those that attend
    to many, whose rows are shorter.

    Args:
        cut: clusters at this distance or further apart stay apart; used by the summary only. 0.1, a mean cosine of 0.9
            within a cluster, is ours.
    """
    products = row_products(maps.flatten(3))
    squared_length = products.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(squared_length == 0, 0.0, squared_length.rsqrt())
    return products * scale.unsqueeze(-1) * scale.unsqueeze(-2)
