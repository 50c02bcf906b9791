"""Metrics of attention maps together with the value vectors.

Needs V, [image, layer, head, key, P]: the value vectors that a head's map multiplies.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from attnprobe.core.grid import TokenGrid
from attnprobe.core.metric import metric
from attnprobe.core.sharing import shared
from attnprobe.metrics.head_similarity import head_similarity
from attnprobe.metrics.sinks import prefix_names
from attnprobe.metrics.token_similarity import token_similarity


@shared
def head_outputs(maps: Tensor, value_vectors: Tensor) -> Tensor:
    """[image, layer, head, query, P], sum_j A[i, j] v_j: what each head makes of the values."""
    return maps @ value_vectors


@metric(axes=("layer", "head"), value_range=(-1.0, 1.0), needs_square=True)
def own_value_similarity(maps: Tensor, value_vectors: Tensor) -> Tensor:
    """Cosine between the output of a query and its own value, mean over the queries of a head.

        O[l, h] = mean over i of cos(y_i, v_i),      y_i = sum_j A[l, h, i, j] v_j

    Near 1, attention hands back what the token already has; exclusive self-attention (arXiv:2603.09078) removes this
    part. A zero vector has cosine 0.
    Caveat: where the values of all tokens are alike (`value_similarity`) it is near 1 for every softmax map, uniform
    attention included.
    """
    received = head_outputs(maps, value_vectors)
    return (F.normalize(received, dim=-1) * F.normalize(value_vectors, dim=-1)).sum(-1).mean(-1)


@metric(axes=("layer", "head"), value_range=(-1.0, 1.0))
def value_similarity(value_vectors: Tensor) -> Tensor:
    """Mean cosine similarity of the values of a head, over all pairs of different tokens.

        S[l, h] = mean over i != j of cos(v_i, v_j)

    Where it is near 1, all that a softmax map can hand out points the same way. Computed like `token_similarity`. NaN
    if there is only one token.
    Caveat: a cosine does not see lengths, in which values may still differ, and an offset that all values share, such
    as a bias, can raise it.
    """
    return token_similarity.function(value_vectors)


@metric(axes=("layer", "head"), value_range=(0.0, None), needs_all_heads=True)
def head_output_norm(maps: Tensor, value_vectors: Tensor) -> Tensor:
    """Norm of a head's output relative to the mean head of its layer.

        N[l, h] = r_h / mean over g of r_g,      r_h = mean over i of |sum_j A[l, h, i, j] v_j|

    Near 0: a dead head, whatever its map shows. Before the output projection, which may still amplify it: our reading
    of norm-based analysis, Kobayashi et al. 2020, arXiv:2004.10102, who include the projection. NaN where the whole
    layer outputs nothing.
    Caveat: it is relative to the layer: where all heads output equally little each has 1, and one very large head
    makes the others look dead.
    """
    size = head_outputs(maps, value_vectors).norm(dim=-1).mean(-1)
    return size / size.mean(-1, keepdim=True)


@metric(axes=("layer", "head", "head"), value_range=(-1.0, 1.0))
def head_output_similarity(maps: Tensor, value_vectors: Tensor) -> Tensor:
    """Cosine similarity of the outputs of two heads, for every pair of heads of a layer.

        C[l, h, g] = <y_h, y_g> / (|y_h| |y_g|),      y_h = sum_j A[l, h, i, j] v_j, all queries i side by side

    After the redundancy of heads in arXiv:2305.07027, who take the largest over other heads. A head that puts out
    nothing has similarity 0.
    Caveat: heads have bases of their own, so unrelated ones score about 0 however alike their maps are: 0 does not say
    that heads do different things.
    """
    return head_similarity.function(head_outputs(maps, value_vectors))


@metric(axes=("layer", "head", "prefix"), value_range=(0.0, 1.0), needs_prefix=True, coords=prefix_names)
def value_weighted_prefix_mass(maps: Tensor, value_vectors: Tensor, grid: TokenGrid) -> Tensor:
    """Share of the values that queries receive from each prefix token, weighted by norm.

        P[l, h, t] = mean over i of  |A[i, t] v_t| / sum_j |A[i, j] v_j|,      t a class token or register

    Norm-based attention: Kobayashi et al. 2020, arXiv:2004.10102, who find that tokens which draw much attention can
    have small values. Far below `prefix_mass`: a sink, which takes attention and gives nothing. Any map will do, for
    magnitudes are what is shared. NaN where a query receives nothing.
    Caveat: parts that cancel in the sum still count, each by its length; and the output projection, which Kobayashi et
    al. include, is left out.
    """
    sizes, shares = torch.linalg.vector_norm(value_vectors, dim=-1), []
    for layer, size in zip(maps.unbind(1), sizes.unbind(1), strict=True):  # one layer at a time stays in cache
        weights = layer.abs()
        from_prefix = weights[..., grid.prefix_tokens] * size[..., None, grid.prefix_tokens]
        received = torch.einsum("...qk,...k->...q", weights, size).unsqueeze(-1)
        shares.append((from_prefix / received).mean(-2))
    return torch.stack(shares, 1)
