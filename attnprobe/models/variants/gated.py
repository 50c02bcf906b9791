"""Gated attention: the heads' outputs pass through a gate computed from the query token.

Qiu et al. 2025, "Gated Attention for Large Language Models: Non-linearity, Sparsity, and Attention-Sink-Free",
arXiv:2505.06708, with X the layer's input, one gate for every number of every head:
    Y = (A V) * sigmoid(X W_g)
W_g has a bias where the model's qkv has one. With W_g = 0 and a large bias (40) the gate is exactly 1 and this is the
plain ViT, bit for bit. Maps are untouched, so the fused kernel runs.
"""

from typing import Any

from torch import Tensor, nn

from attnprobe.models.attention import TappedAttention
from attnprobe.models.variant import AttentionViT, Paper, Variant


class GatedAttention(TappedAttention):
    """Self-attention with an elementwise sigmoid gate before the output projection."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        wide = self.qkv
        like = {"device": wide.weight.device, "dtype": wide.weight.dtype}
        self.gate = nn.Linear(wide.in_features, self.proj.in_features, bias=wide.bias is not None, **like)
        nn.init.trunc_normal_(self.gate.weight, std=0.02)  # as all linear layers of a timm ViT
        if self.gate.bias is not None:
            nn.init.zeros_(self.gate.bias)

    def join(self, y: Tensor, x: Tensor) -> Tensor:
        """Heads' outputs and the layer's input -> the layer's output, [image, token, width]."""
        gate = self.gate(x).sigmoid().unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
        return super().join(y * gate, x)


class GatedViT(AttentionViT):
    """A ViT with gated attention in every block."""

    attention = GatedAttention


GATED = Variant(
    name="gated",
    summary="heads' outputs pass through a sigmoid gate computed from the query token",
    paper=Paper("qiu2025gated", "2505.06708", 2025),
    model=GatedViT,
)
