"""Centred kernel alignment (CKA) between layers, of attention maps and of block outputs, and between heads."""

from typing import Any

from torch import Tensor

from attnprobe.core.metric import metric
from attnprobe.metrics.engine.hsic import constant, gram, hsic, hsic_of_products, normalised
from attnprobe.metrics.engine.linear_algebra import row_products
from attnprobe.metrics.engine.row_grams import row_grams


def _range(estimator: str, **_: Any) -> tuple[float, float]:
    return (0.0, 1.0) if estimator == "biased" else (-1.0, 1.0)


@metric(
    axes=("layer", "layer"),
    value_range=(-1.0, 1.0),
    needs_square=True,
    needs_all_heads=True,
    narrow_range=_range,
    from_mean=normalised,
)
def map_cka(maps: Tensor, *, estimator: str = "unbiased") -> Tensor:
    """Centred kernel alignment of attention maps, for every pair of layers.

    With x_i[l] the rows of query i of all heads of layer l side by side, K_l = <x_i, x_j> over queries, centred:

        CKA[p, r] = mean HSIC(K_p, K_r) / sqrt(mean HSIC(K_p, K_p) mean HSIC(K_r, K_r)),      means over images

    Linear CKA: Kornblith et al. 2019, arXiv:1905.00414; averaging an unbiased HSIC over minibatches before dividing:
    Nguyen et al. 2021, arXiv:2010.15327 and Raghu et al. 2021, arXiv:2108.08810. On attention maps: arXiv:2301.02240.
    Our reading: samples are the queries of one image, so an image is a minibatch, and heads are concatenated, not
    averaged. A layer whose queries all attend alike carries nothing and has CKA 0, with itself too.

    Caveat: CKA sees neither the order of heads or of keys nor how far a layer is from uniform attention, and therefore
    calls layers alike that `layer_similarity` keeps apart: 1 says that queries which attend alike in p attend alike in
    r, not that they attend to the same places.

    Args:
        estimator: "unbiased", or "biased", which for one image is Kornblith's and near 1 where features outnumber
            tokens, as they do here.

    Returns:
        [image, layer, layer], the HSIC that is averaged.
    """
    grams = row_grams(maps)  # of all heads side by side: the sum of theirs
    kernels, diagonal = grams.layers.flatten(2), grams.diagonal.sum(2)
    varies = ~constant(diagonal, grams.squared_length.sum(2))
    kernels, diagonal = (x.where(varies.unsqueeze(-1), 0) for x in (kernels, diagonal))
    return hsic_of_products(row_products(kernels), diagonal, estimator)


@metric(axes=("layer", "layer"), value_range=(-1.0, 1.0), narrow_range=_range, from_mean=normalised)
def token_cka(tokens: Tensor, *, estimator: str = "unbiased") -> Tensor:
    """Centred kernel alignment of block outputs, for every pair of layers.

    With x_i[l] the output of block l for token i, K_l = <x_i, x_j> over tokens, centred:

        CKA[p, r] = mean HSIC(K_p, K_r) / sqrt(mean HSIC(K_p, K_p) mean HSIC(K_r, K_r)),      means over images

    The same as `map_cka` of the features of the tokens; samples are the tokens of one image. Sources as for `map_cka`.
    Caveat: blocks add to what came before, so neighbours are alike by construction; read it beside the untrained
    baseline. A single token with a huge norm (see `high_norm_tokens`) can decide the number.

    Args:
        estimator: "unbiased" or "biased".

    Returns:
        [image, layer, layer], the HSIC that is averaged.
    """
    return hsic(*gram(tokens), estimator)


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
    grams = row_grams(maps)
    varies = ~constant(grams.diagonal, grams.squared_length)
    both = varies.unsqueeze(-1) & varies.unsqueeze(-2)
    return hsic_of_products(grams.heads.where(both, 0), grams.diagonal.where(varies.unsqueeze(-1), 0), estimator)
