"""Cosines of token vectors between layers, which `layer_similarity`, its centred form and `similar_blocks` share.

Question: how, for every centre, at the price of one? Choice: the Gram matrix over layers of every token's vector less
its mean, C, and the means m. Products of the vectors themselves are C + n m m^T, and of those less 1/K likewise: sums
that cancel nothing, so exact up to rounding; from the raw products C would be a small difference of large numbers.
On a CPU the columns of one head of all layers are turned into rows once, while they are in the cache: the three metrics
together take 15 ms instead of 48 (16 x 12 x 197 x 197, float32, one core of an Intel Xeon).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attnprobe.core.sharing import shared
from attnprobe.metrics.engine.linear_algebra import check_vectors, in_cache, inverse_length, row_products


@dataclass(frozen=True, slots=True)
class LayerCosines:
    """Cosines of every token's vectors in two layers: products * scale scale^T + offset offset^T.

    Attributes:
        products: [image, head, token, layer, layer], of the vectors less their means.
        scale: [image, head, token, layer], 1 / length of a vector; 0 for one that is zero.
        offset: [image, head, token, layer], what the mean of a vector adds.
    """

    products: Tensor
    scale: Tensor
    offset: Tensor

    def of(self, one: int, other: int) -> Tensor:
        """[image, head, token]: of two layers."""
        centred = self.products[..., one, other] * self.scale[..., one] * self.scale[..., other]
        return centred + self.offset[..., one] * self.offset[..., other]

    def mean(self) -> Tensor:
        """[image, layer, layer]: the mean over heads and tokens."""
        parts = (in_cache(x, self.products.shape[1:]) for x in (self.products, self.scale))
        scaled = [
            (products * scale.unsqueeze(-1) * scale.unsqueeze(-2)).mean(2).mean(1)
            for products, scale in zip(*parts, strict=True)
        ]
        offset = self.offset.flatten(1, 2)
        return torch.cat(scaled) + offset.mT @ offset / offset.shape[1]


def layer_cosines(maps: Tensor, axis: str = "key", center: str = "none", exclude_prefix: int = 0) -> LayerCosines:
    """Cosines between layers of the token vectors of [image, layer, head, query, key].

    Args:
        maps: the maps.
        axis, center, exclude_prefix: settings of `layer_similarity`, explained there.

    Raises:
        InputError: an unknown axis or centre, or no token left.
    """
    check_vectors(maps, axis, center, exclude_prefix)
    products, means = (x[:, :, exclude_prefix:] for x in _about_means(maps, axis))
    n_entries, zero = maps.shape[-2 if axis == "key" else -1], torch.zeros_like(means)
    offset = {"none": means, "uniform": means - 1.0 / maps.shape[-1], "mean": zero}[center]
    squared = products.diagonal(dim1=-2, dim2=-1)
    raw, squared = squared + n_entries * means.square(), squared + n_entries * offset.square()
    scale = inverse_length(squared, raw, center)
    return LayerCosines(products, scale, n_entries**0.5 * offset * scale)


@shared
def _about_means(maps: Tensor, axis: str) -> tuple[Tensor, Tensor]:
    """Products of vectors less their means, [image, head, token, layer, layer], and the means [..., token, layer]."""
    order = (0, 2, 4, 1, 3) if axis == "key" else (0, 2, 3, 1, 4)  # [image, head, token, layer, entry]
    if maps.requires_grad:
        vectors = maps.permute(order)
        means = vectors.mean(-1, keepdim=True)
        return row_products(vectors - means), means.squeeze(-1)
    images, heads, tokens, layers, _ = (maps.shape[axis] for axis in order)
    products = maps.new_empty(images, heads, tokens, layers, layers)
    means = maps.new_empty(images, heads, tokens, layers)
    work = maps.new_empty(2, 0)  # fresh memory for every head would double the time
    parts = (in_cache(x, maps[0, :, 0].shape) for x in (maps, products, means))
    for some, its_products, its_means in zip(*parts, strict=True):
        for head, product, mean in zip(some.unbind(2), its_products.unbind(1), its_means.unbind(1), strict=True):
            work = work.resize_(2, head.numel())
            vectors = _by_token(head, axis, work)
            its_mean = vectors.mean(-1, keepdim=True)
            vectors.sub_(its_mean)
            mean.copy_(its_mean.squeeze(-1).transpose(0, 1))
            if len(product) == 1:  # else its tokens do not follow one another in memory
                row_products(vectors[:, 0], out=product[0])
            else:
                product.copy_(row_products(vectors).transpose(0, 1))
    return products, means


def _by_token(head: Tensor, axis: str, work: Tensor) -> Tensor:
    """[token, image, layer, entry] of [image, layer, query, key], in the memory of work[1]."""
    if axis == "query":
        rows = head.permute(2, 0, 1, 3)
        return work[1].view(rows.shape).copy_(rows)
    # Copied, then transposed as one matrix: PyTorch does that block by block, in a third of the time of a transpose of
    # many matrices.
    copied = work[0].view(head.shape).copy_(head)
    n_keys = head.shape[-1]
    return work[1].view(n_keys, -1).copy_(copied.view(-1, n_keys).t()).view(n_keys, *head.shape[:-1])
