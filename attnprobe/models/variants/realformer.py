"""RealFormer: every block adds the previous block's logits to its own, and takes the softmax of the sum.

He et al. 2021, "RealFormer: Transformer Likes Residual Attention", arXiv:2012.11747, without parameters of its own:
    Z^l = Q K^T / sqrt(P) + Z^(l-1),   A^l = softmax(Z^l)
Without previous logits (in the first block, or if they are 0) this is the plain ViT, bit for bit (unfused).
Logits are passed on, so there is no fused path.
"""

import torch
from torch import Tensor

from attnprobe.models.attention import TappedAttention
from attnprobe.models.cascade import CascadeViT
from attnprobe.models.variant import AttentionViT, Paper, Variant


class ScoreCascade(TappedAttention):
    """Self-attention that passes its logits on; `fuse` combines them with those of the previous block."""

    def fuse(self, scores: Tensor, previous: Tensor | None) -> Tensor:
        """This block's own logits and the previous block's Z (None in the first) -> Z, [image, head, query, key]."""
        return scores if previous is None else scores + previous

    def forward(self, x: Tensor, carried: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[image, token, width] and the previous block's Z -> the output and this block's Z."""
        q, k, v = self.split(x)
        scores = (q * self.scale) @ k.mT
        # Added up in float32 under autocast: bfloat16 keeps 8 bits of a sum that grows from block to block.
        z = self.fuse(scores.to(torch.promote_types(scores.dtype, torch.float32)), carried)
        weights = z.softmax(dim=-1).to(x.dtype)  # of a model in bfloat16; x is float32 under autocast
        return self.join(self.use(weights, v), x), z


class RealFormer(AttentionViT, CascadeViT):
    """A ViT with residual logits; arguments and errors as `CascadeViT`."""

    attention = ScoreCascade


REALFORMER = Variant(
    name="realformer",
    summary="scores are added up from block to block before the softmax",
    paper=Paper("he2021realformer", "2012.11747", 2021),
    model=RealFormer,
)
