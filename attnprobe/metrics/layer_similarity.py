"""Cosine similarity of attention columns between layers."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from attnprobe.core.errors import check_choice
from attnprobe.core.metric import metric
from attnprobe.metrics.engine.cosines import layer_cosines
from attnprobe.metrics.engine.heads import HEAD_MATCH, matching
from attnprobe.metrics.engine.linear_algebra import row_products, unit_vectors


def _range(stochastic: bool, center: str, **_: Any) -> tuple[float, float]:
    """Vectors without negative entries have no negative cosine."""
    return (0.0, 1.0) if stochastic and center == "none" else (-1.0, 1.0)


@metric(axes=("layer", "layer"), value_range=(-1.0, 1.0), needs_square=True, narrow_range=_range)
def layer_similarity(
    maps: Tensor, *, axis: str = "key", center: str = "none", exclude_prefix: int = 0, head_match: str = "index"
) -> Tensor:
    """Cosine similarity of attention columns, for every pair of layers.

    For layers p, r, the same head h in both and key token t, with the column a = A[p, h, :, t]:

        M[p, r] = mean over h, t of  <a_p, a_r> / (|a_p| |a_r|)

    Zhou et al. 2021, arXiv:2103.11886 (its M for one head and token), averaged over heads and tokens: our reading,
    the paper does not say how they are pooled. 1 on the diagonal; 1 off the diagonal means that every token plays the
    same role in both layers. A zero vector has cosine 0 with everything, itself included.

    Caveats: entries of a softmax are never negative, so unrelated columns are similar, too: independent log-normal
    entries of log-std s have cosine exp(-s^2), 0.99 at s = 0.1, and uniform maps have exactly 1. Read it beside
    `layer_similarity_centred` and the untrained baseline. Heads have no natural order across layers; the paper still
    compares equal h. Signed maps (after heads are mixed and normalised) are not comparable with softmax maps.

    Args:
        axis: "key": the vector of token t is the column A[:, t], how much t gives to each query (arXiv:2103.11886);
            "query": it is the row A[t, :], how much t attends to each key.
        center: "none"; "mean": each vector minus the mean of its entries, so that a cosine is a correlation; "uniform":
            minus 1/K, the entry of uniform attention over K keys.
        exclude_prefix: leave out the vectors of so many first tokens; the others keep all their entries.
        head_match: which heads of two layers are compared. "index": equal numbers, as in the paper. "hungarian": the
            pairing with the largest mean cosine, in each image; never below "index", and above 0 for unrelated heads
            even where vectors are centred, so compare it with its own untrained baseline.
    """
    check_choice("head_match", head_match, HEAD_MATCH)
    if head_match == "hungarian":
        return _with_heads_matched(maps, axis, center, exclude_prefix)
    return layer_cosines(maps, axis, center, exclude_prefix).mean()


def _with_heads_matched(maps: Tensor, axis: str, center: str, exclude_prefix: int) -> Tensor:
    """[image, layer, layer]: all pairs of heads from one product, then the best pairing of each two layers."""
    layers, heads = maps.shape[1:3]
    units = unit_vectors(maps, axis, center, exclude_prefix)
    n_vectors = heads * units.shape[-1 if axis == "key" else -2]
    products = row_products(units.flatten(3).flatten(1, 2))
    gains = products.unflatten(-1, (layers, heads)).unflatten(1, (layers, heads)).transpose(2, 3)
    partners = matching(gains).unsqueeze(-1)
    return gains.gather(-1, partners).squeeze(-1).sum(-1) / n_vectors


layer_similarity_centred = replace(layer_similarity, name="layer_similarity_centred", settings={"center": "mean"})
"""`layer_similarity` with center="mean": 0, not 1, for maps that only share being near uniform."""
