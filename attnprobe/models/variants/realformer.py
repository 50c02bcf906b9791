"""RealFormer: every block adds its scores to those of the block before, and takes the softmax of the sum.

He et al. 2021, "RealFormer: Transformer Likes Residual Attention", arXiv:2012.11747, without parameters of its own:
    Z^l = Q K^T / sqrt(P) + Z^(l-1),   A^l = softmax(Z^l)
Without scores from before (in the first block, or if they are 0) this is the plain ViT, bit for bit (unfused).
Scores are handed on, so there is no fused path.
"""

from typing import Any

from torch import Tensor

from attnprobe.models.attention import TappedAttention, replace_attention
from attnprobe.models.cascade import CascadeViT
from attnprobe.models.variant import Paper, Variant


class ScoreCascade(TappedAttention):
    """Self-attention that hands its scores on; `fuse` says how they meet those of the block before."""

    def fuse(self, scores: Tensor, previous: Tensor | None) -> Tensor:
        """This block's own scores and the previous block's Z (None in the first) -> Z, [image, head, query, key]."""
        return scores if previous is None else scores + previous

    def forward(self, x: Tensor, carried: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[image, token, width] and the Z of the block before -> the output and this block's Z."""
        q, k, v = self.split(x)
        z = self.fuse((q * self.scale) @ k.mT, carried)
        return self.join(self.use(z.softmax(dim=-1), v), x), z


class RealFormer(CascadeViT):
    """A ViT with residual scores; arguments and errors as `CascadeViT`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        block: Any
        for block in self.blocks:
            block.attn = replace_attention(ScoreCascade, block.attn)


REALFORMER = Variant(
    name="realformer",
    summary="scores are added up from block to block before the softmax",
    paper=Paper("he2021realformer", "2012.11747", 2021),
    model=RealFormer,
)
