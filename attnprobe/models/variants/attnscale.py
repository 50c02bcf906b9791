"""AttnScale: a learned factor per head amplifies a map's difference from the uniform map.

Wang et al. 2022, "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis: From Theory to
Practice", arXiv:2203.05962, with N tokens and w in R^H:
    A' = (1/N) 1 1^T + (1 + w) (A - (1/N) 1 1^T)  =  A + w (A - (1/N) 1 1^T)
w starts at 0, where this is the plain ViT, bit for bit. Rows of A' sum to 1; entries may be negative.

A' V = A V + w (A V - mean of V), so the fused kernel does the work and A' exists only while a tap is hooked.
Departure: attention dropout acts on A, not on A', so that both paths agree in training as well.
"""

from typing import Any

from torch import Tensor, nn

from attnprobe.models.attention import TappedAttention
from attnprobe.models.variant import AttentionViT, Paper, Variant


class AttnScale(TappedAttention):
    """Self-attention whose maps are pushed away from the uniform one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.w = nn.Parameter(self.qkv.weight.new_zeros(self.num_heads))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Queries, keys, values -> [image, head, token, head width]."""
        y = super().attend(q, k, v)
        return y if self.explicit else y + self.w.view(-1, 1, 1) * (y - v.mean(dim=2, keepdim=True))

    def mix(self, weights: Tensor) -> Tensor:
        """A -> A', both [image, head, query, key]."""
        return weights + self.w.view(-1, 1, 1) * (weights - 1 / weights.shape[-1])


class AttnScaleViT(AttentionViT):
    """A ViT with AttnScale in every block."""

    attention = AttnScale


ATTNSCALE = Variant(
    name="attnscale",
    summary="maps are pushed away from the uniform map by a learned factor per head",
    paper=Paper("wang2022antioversmoothing", "2203.05962", 2022),
    model=AttnScaleViT,
    sites=("weights", "effective"),
)
