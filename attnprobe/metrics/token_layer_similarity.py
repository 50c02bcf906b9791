"""Cosine similarity of block outputs between layers."""

from torch import Tensor
from torch.nn import functional as F

from attnprobe.core.metric import metric


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
