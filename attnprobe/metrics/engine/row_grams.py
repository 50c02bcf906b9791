"""Gram matrices of the rows of attention maps, reduced to what metrics need of them.

Question: one product per map for ranks and for dependence of heads and layers? Choice: of the rows less their mean,
A = B + 1 m^T, whose Gram matrix C = B B^T is what HSIC needs. That of the rows themselves follows without cancellation,
for the columns of B sum to 0: |A A^T|^2 = |C|^2 + 2 Q |B m|^2 + Q^2 |m|^4, a sum of positive terms. No Gram matrix is
kept, which would take another copy of the maps, but for the sum over heads, which `map_cka` compares between layers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from attnprobe.core.sharing import shared
from attnprobe.metrics.engine.linear_algebra import in_cache, row_products


@dataclass(frozen=True, slots=True)
class RowGrams:
    """Sums over C = B B^T, B = A - 1 m^T, of every map A; m is its mean row.

    Attributes:
        diagonal: [image, layer, head, query], of C.
        heads: [image, layer, head, head], sum over the products of the entries of two heads' C, without diagonals.
        layers: [image, layer, query, query], the sum over heads of C, without its diagonal.
        mean_length: [image, layer, head], |m|^2.
        along_mean: [image, layer, head], |B m|^2.
    """

    diagonal: Tensor
    heads: Tensor
    layers: Tensor
    mean_length: Tensor
    along_mean: Tensor

    @property
    def squared_length(self) -> Tensor:
        """[image, layer, head]: |A|^2, the sum of all squared entries."""
        return self.diagonal.sum(-1) + self.diagonal.shape[-1] * self.mean_length

    @property
    def squared_gram(self) -> Tensor:
        """[image, layer, head]: |A A^T|^2, the sum of the fourth powers of the singular values."""
        n = self.diagonal.shape[-1]
        centred = self.heads.diagonal(dim1=-2, dim2=-1) + self.diagonal.square().sum(-1)
        return centred + 2 * n * self.along_mean + (n * self.mean_length).square()


@shared
def row_grams(maps: Tensor) -> RowGrams:
    """Gram sums of the rows of [image, layer, head, query, key]."""
    parts = [_of_images(images) for images in in_cache(maps, maps.shape[2:])]
    return RowGrams(*(torch.cat(part) for part in zip(*parts, strict=True)))


def _of_images(maps: Tensor) -> tuple[Tensor, ...]:
    layers = []
    rows, gram = _memory(maps, maps.shape[-1]), _memory(maps, maps.shape[-2] + 1)
    for layer in maps.unbind(1):
        mean = layer.mean(-2, keepdim=True)
        if maps.requires_grad:
            rows, gram = torch.cat([layer - mean, mean], -2), None
        else:  # the mean is one more row, for B m and |m|^2 come with the same product
            torch.sub(layer, mean, out=rows[..., :-1, :])
            rows[..., -1:, :] = mean
        gram = row_products(rows, out=gram)
        length = gram.diagonal(dim1=-2, dim2=-1).clone()
        along_mean = gram[..., :-1, -1].square().sum(-1)
        gram.diagonal(dim1=-2, dim2=-1).zero_()
        gram[..., -1].zero_()
        gram[..., -1, :].zero_()
        flat = gram.flatten(-2)
        parts = length[..., :-1], row_products(flat), gram.sum(1)[..., :-1, :-1], length[..., -1], along_mean
        layers.append(parts)
    return tuple(torch.stack(part, 1) for part in zip(*layers, strict=True))


def _memory(maps: Tensor, width: int) -> Tensor:
    """[image, head, query + 1, width] to work in: fresh memory for every layer would take half as much time again."""
    return maps.new_empty(len(maps), maps.shape[2], maps.shape[-2] + 1, width)
