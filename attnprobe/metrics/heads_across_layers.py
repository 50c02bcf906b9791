"""Similarity and divergence between all heads of the network."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from torch import Tensor

from attnprobe.core.measurement import Measurement
from attnprobe.core.metric import metric
from attnprobe.metrics.engine.heads import clusters, fewest_and_most, from_cosine
from attnprobe.metrics.head_divergence import head_divergence
from attnprobe.metrics.head_similarity import head_similarity, signed_unless_stochastic

AXES = ("layer", "head", "layer", "head")


def _summary(m: Measurement, distance: Callable[[np.ndarray], np.ndarray] = lambda mean: mean) -> dict[str, Any]:
    """Groups of heads of the whole network as [block, head], which count from 1."""
    if not np.isfinite(m.mean).all():
        return {}
    layers, heads = m.mean.shape[:2]
    n, cut = layers * heads, m.settings["cut"]
    mean, ends = distance(m.mean).reshape(n, n), distance(m.ci).reshape(2, n, n)
    labels = clusters(mean, cut)
    groups = [[] for _ in range(max(labels) + 1)]
    for head, label in enumerate(labels):
        groups[label].append([m.block_numbers[head // heads], head % heads + 1])
    found = {"effective_heads": len(groups), "effective_heads_ci": fewest_and_most(len(groups), mean, ends, cut)}
    return found | {"redundant": n - len(groups), "of": n, "clusters": groups, "cut": cut, "n_images": m.n_images}


@metric(
    axes=AXES, value_range=(-1.0, 1.0), narrow_range=signed_unless_stochastic,
    summarise=partial(_summary, distance=from_cosine),
)  # fmt: skip
def head_similarity_across_layers(maps: Tensor, *, cut: float = 0.1) -> Tensor:
    """Cosine similarity of whole attention maps, for every pair of heads of the network.

        C[l, h, m, g] = <A[l, h], A[m, g]> / (|A[l, h]| |A[m, g]|)      over all Q x K entries

    `head_similarity` across layers; the summary clusters all heads together (average linkage at the distance 1 - C).
    Bian et al. 2021 (NAACL) study such a redundancy matrix of all heads, with other distances.

    Caveats: those of `head_similarity`. A sharp head and a near-uniform one have a small cosine even where they prefer
    the same keys, and near-uniform ones of any two blocks a large one: groups also tell how flat maps are.

    Args:
        cut: clusters at this distance or further apart stay apart; used by the summary only.
    """
    return _across(head_similarity.function, maps)


@metric(axes=AXES, value_range=(0.0, math.log(2)), unit="nats", needs_stochastic=True, by_row=True, summarise=_summary)
def head_divergence_across_layers(maps: Tensor, *, cut: float = 0.05) -> Tensor:
    """Jensen-Shannon divergence between the rows of two heads, mean over queries, for all heads of the network.

        D[l, h, m, g] = mean over i of JS(A[l, h, i, :], A[m, g, i, :])

    `head_divergence` across layers: Clark et al. 2019, arXiv:1906.04341, compare all heads of a network so. The summary
    clusters all heads together. Cost: (L H)^2 / 2 pairs, about five forward passes of 16 x 12 heads: not part of "all".

    Caveats: those of `head_divergence`: near-uniform heads of any two blocks fall into one group, whatever they prefer.

    Args:
        cut: clusters at this distance or further apart stay apart; used by the summary only.
    """
    return _across(head_divergence.function, maps)


def _across(within_a_layer: Callable[[Tensor], Tensor], maps: Tensor) -> Tensor:
    """A metric of the heads of a layer, of all heads as if they were of one."""
    layers, heads = maps.shape[1:3]
    return within_a_layer(maps.flatten(1, 2).unsqueeze(1)).view(-1, layers, heads, layers, heads)
