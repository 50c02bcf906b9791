"""Cosine similarity of block outputs: between the tokens of a layer, and between layers."""

from torch import Tensor
from torch.nn import functional as F

from attnprobe.core.metric import metric


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
    return (by_token @ by_token.mT).mean(1)
