"""Differential attention: heads work in pairs, and the second softmax is subtracted from the first.

Ye et al. 2024, "Differential Transformer", arXiv:2410.05258, with Q1, K1, Q2, K2 of a pair of heads and V of both:
    A = softmax(Q1 K1^T / sqrt(P)) - lambda softmax(Q2 K2^T / sqrt(P)),   Y = (1 - lambda_0) RMSNorm(A V) per pair
    lambda = exp(lq1 . lk1) - exp(lq2 . lk2) + lambda_0,   lambda_0 = 0.8 - 0.6 exp(-0.3 (l - 1)) in block l = 1, 2, ...
H heads of width P make H/2 pairs with values of width 2P: heads 2j and 2j + 1 of the plain ViT, so that parameters
are shaped alike. A has H/2 heads. "weights" is the first softmax of each pair, of the same shape; "effective" is A,
and (weights - effective) / lambda is the second softmax.

With lambda = 0, no RMSNorm and both heads of a pair alike in Q and K, this is the plain ViT, bit for bit (unfused).
Dropout acts on each softmax, so that two fused kernels can take the place of A.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from attnprobe.core.errors import InputError
from attnprobe.models.attention import TappedAttention, replace_attention
from attnprobe.models.variant import Paper, Variant


class PairNorm(nn.Module):
    """RMS norm over the values of each pair of heads, then a constant scale: [image, token, width] -> the same."""

    def __init__(self, width: int, scale: float, **like: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, **like))
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        pairs = x.unflatten(-1, (-1, len(self.weight)))
        return (F.rms_norm(pairs, self.weight.shape, eps=1e-5) * (self.scale * self.weight)).flatten(-2)


class DifferentialAttention(TappedAttention):
    """Self-attention with the difference of two softmaxes per pair of heads."""

    def __init__(self, *args: Any, lambda_0: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lambda_0 = lambda_0
        vectors = 0.1 * torch.randn_like(self.qkv.weight[:4, : self.head_dim])
        self.lambda_q1, self.lambda_k1, self.lambda_q2, self.lambda_k2 = (nn.Parameter(v.clone()) for v in vectors)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[image, token, width] -> Q and K [image, head, token, P], V [image, pair, token, 2P]."""
        q, k, v = super().split(x)
        return q, k, v.unflatten(1, (-1, 2)).transpose(2, 3).flatten(3)

    def share(self) -> Tensor:
        """lambda, a number: the factor of the second softmax."""
        first, second = (self.lambda_q1 * self.lambda_k1).sum(), (self.lambda_q2 * self.lambda_k2).sum()
        return first.exp() - second.exp() + self.lambda_0

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys, values -> [image, pair, token, 2P]."""
        if not self.explicit:
            dropout = self.attn_drop.p if self.training else 0.0
            first, second = (
                F.scaled_dot_product_attention(q[:, i::2], k[:, i::2], v, dropout_p=dropout, scale=self.scale)
                for i in (0, 1)
            )
            return first - self.share() * second
        maps = ((q * self.scale) @ k.mT).softmax(dim=-1)
        first = self.taps["weights"](maps[:, ::2])
        return self.taps["effective"](self.attn_drop(first) - self.share() * self.attn_drop(maps[:, 1::2])) @ v


class DifferentialViT(VisionTransformer):
    """A ViT with differential attention in every block; arguments as timm's `VisionTransformer`.

    Raises:
        InputError: the number of heads is odd, or `scale_attn_norm` is on: the norm's place is taken.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        block: Any
        for index, block in enumerate(self.blocks):
            block.attn = _differential(block.attn, lambda_0=0.8 - 0.6 * math.exp(-0.3 * index))


def _differential(plain: Attention, lambda_0: float) -> DifferentialAttention:
    if plain.num_heads % 2:
        raise InputError(
            f"differential attention pairs its heads, so their number must be even, got {plain.num_heads}."
        )
    if not isinstance(plain.norm, nn.Identity):
        raise InputError("differential attention has its own norm of each pair of heads; leave scale_attn_norm out.")
    attention = replace_attention(DifferentialAttention, plain, lambda_0=lambda_0)
    like = {"device": plain.qkv.weight.device, "dtype": plain.qkv.weight.dtype}
    attention.norm = PairNorm(2 * plain.head_dim, 1 - lambda_0, **like)
    return attention


DIFFERENTIAL = Variant(
    name="differential",
    summary="pairs of heads: the difference of two softmaxes, normalised per pair",
    paper=Paper("ye2024differential", "2410.05258", 2024),
    model=DifferentialViT,
    sites=("weights", "effective"),
)
