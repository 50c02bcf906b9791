"""FeatScale: the tokens' mean and their difference from it are re-weighted after attention, per channel.

Wang et al. 2022, "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis: From Theory to
Practice", arXiv:2203.05962, with y the attention layer's output, DC(y) its mean over tokens and s, t in R^D:
    y + s DC(y) + t (y - DC(y))
s and t start at 0, where this is the plain ViT, bit for bit. Maps are untouched, so the fused kernel runs.
"""

from typing import Any

from torch import Tensor, nn

from attnprobe.models.attention import TappedAttention
from attnprobe.models.variant import AttentionViT, Paper, Variant


class FeatScale(TappedAttention):
    """Self-attention whose output is split into its mean over tokens and the rest."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.s = nn.Parameter(self.qkv.weight.new_zeros(self.proj.out_features))
        self.t = nn.Parameter(self.qkv.weight.new_zeros(self.proj.out_features))

    def join(self, y: Tensor, x: Tensor) -> Tensor:
        """Heads' outputs and the layer's input -> the layer's output, [image, token, width]."""
        y = super().join(y, x)
        mean = y.mean(dim=1, keepdim=True)
        return y + self.s * mean + self.t * (y - mean)


class FeatScaleViT(AttentionViT):
    """A ViT with FeatScale in every block."""

    attention = FeatScale


FEATSCALE = Variant(
    name="featscale",
    summary="the tokens' mean and their difference from it are re-weighted after attention",
    paper=Paper("wang2022antioversmoothing", "2203.05962", 2022),
    model=FeatScaleViT,
)
