"""Talking heads: learned mixtures of heads, one of the logits and one of the weights after the softmax.

Shazeer et al. 2020, "Talking-Heads Attention", arXiv:2003.02436:
    A = P_w softmax(P_l Q K^T / sqrt(P)),   P_l, P_w in R^(H x H) over heads
Departure: both matrices start at the identity, where this is the plain ViT, bit for bit (unfused).
The softmax is "weights"; P_w of it, whose rows need not sum to 1, is "effective".
"""

from typing import Any

import torch
from torch import Tensor, nn

from attnprobe.models.attention import TappedAttention, mix_heads
from attnprobe.models.variant import AttentionViT, Paper, Variant


class TalkingHeads(TappedAttention):
    """Self-attention with a learned head x head matrix on either side of the softmax."""

    mixes = True

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        like = {"device": self.qkv.weight.device, "dtype": self.qkv.weight.dtype}
        self.mix_scores = nn.Parameter(torch.eye(self.num_heads, **like))
        self.mix_weights = nn.Parameter(torch.eye(self.num_heads, **like))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys, values -> [image, head, token, head width]."""
        scores = mix_heads(self.mix_scores, (q * self.scale) @ k.mT)
        return self.use(scores.softmax(dim=-1), v)

    def mix(self, weights: Tensor) -> Tensor:
        """P_w times the softmax."""
        return mix_heads(self.mix_weights, weights)


class TalkingHeadsViT(AttentionViT):
    """A ViT with talking heads in every block."""

    attention = TalkingHeads


TALKING_HEADS = Variant(
    name="talkingheads",
    summary="learned head x head matrices before and after the softmax",
    paper=Paper("shazeer2020talking", "2003.02436", 2020),
    model=TalkingHeadsViT,
    sites=("weights", "effective"),
)
