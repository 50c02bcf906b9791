"""Attention that variants change, with taps on its matrices and a fused kernel while no tap is read."""

from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

from attnprobe.core.errors import InputError
from attnprobe.core.tap import Tap

A = TypeVar("A", bound=Attention)


class TappedAttention(Attention):
    """timm's attention with taps on its matrices.

    A variant overrides what it changes: `split` (queries, keys, values), `mix` (the map after the softmax; set
    `mixes`), `attend` (all of it) or `join` (after the product with V). Parameter names stay timm's.

    While no hook is on a tap, and unless the variant mixes maps, PyTorch's fused kernel runs.
    """

    mixes = False
    """True if the variant overrides `mix`: then the map is needed, and no fused kernel can be used."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.taps = nn.ModuleDict({"weights": Tap(), "effective": Tap()})

    @property
    def explicit(self) -> bool:
        """True if the map has to be computed: a tap is hooked, fused kernels are switched off, or heads are mixed."""
        return self.mixes or not self.fused_attn or any(tap.listening for tap in self.taps.values())

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """[image, token, width] -> queries, keys and values, each [image, head, token, head width]."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        return self.q_norm(q), self.k_norm(k), v

    def mix(self, weights: Tensor) -> Tensor:
        """Attention weights (the softmax) -> effective attention (the matrix multiplied with V), both [I, H, Q, K]."""
        return weights

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys, values -> [image, head, token, head width]."""
        if not self.explicit:
            dropout = self.attn_drop.p if self.training else 0.0
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, scale=self.scale)
        return self.use(((q * self.scale) @ k.mT).softmax(dim=-1), v)

    def use(self, weights: Tensor, v: Tensor) -> Tensor:
        """Softmax maps and values -> [image, head, token, head width], through both taps."""
        weights = self.taps["weights"](weights)
        return self.taps["effective"](self.mix(self.attn_drop(weights))) @ v

    def join(self, y: Tensor, x: Tensor) -> Tensor:
        """Heads' outputs and the layer's input -> the layer's output, [image, token, width]."""
        return self.proj_drop(self.proj(self.norm(y.transpose(1, 2).flatten(2))))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[image, token, width] -> the same.

        Raises:
            InputError: a mask was given; what variants do to whole maps has no masked form.
        """
        if attn_mask is not None or is_causal:
            raise InputError(f"{type(self).__name__} takes no attention mask: it works on whole maps.")
        return self.join(self.attend(*self.split(x)), x)


def replace_attention(kind: type[A], plain: Attention, **options: Any) -> A:
    """`plain` as another kind of attention, with its geometry and the modules timm built and initialised."""
    other = kind(
        plain.qkv.in_features,
        num_heads=plain.num_heads,
        qkv_bias=plain.qkv.bias is not None,
        proj_bias=plain.proj.bias is not None,
        attn_drop=plain.attn_drop.p,
        proj_drop=plain.proj_drop.p,
        device=plain.qkv.weight.device,
        dtype=plain.qkv.weight.dtype,
        **options,
    )
    for name, module in plain.named_children():
        setattr(other, name, module)
    return other


def mix_heads(weight: Tensor, maps: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution over heads, weight [out, in, 1, 1] or [out, in], as one batched matrix product.

    `expand` and `bmm` rather than a broadcast `@`, which copies the maps: 0.4 of its time forward and backward, and
    0.9 to 1.2 of a convolution's (one core, 197 tokens).
    """
    weight = weight.flatten(1).expand(maps.shape[0], -1, -1)
    flat = maps.flatten(2)
    mixed = torch.bmm(weight, flat) if bias is None else torch.baddbmm(bias.view(1, -1, 1), weight, flat)
    return mixed.unflatten(2, maps.shape[2:])
