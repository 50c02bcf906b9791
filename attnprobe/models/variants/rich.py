"""Rich head interaction: each head's logits depend on all heads' logits in the previous blocks.

The formula of the paper "Rich Attention Heads Interaction in Vision Transformer" is not public; it describes heads that
explain one another away, and attention values that are passed on and fused layer by layer. This is OUR READING of it,
after Zheng et al. 2021, "Cascaded Head-colliding Attention", arXiv:2105.14850:
    S^l = Q K^T / sqrt(P),   U^l = S^l + Z^(l-1),   Z^l = U^l + F_l(U^l) + noise,   A^l = softmax(Z^l)
and Z^1 = S^1 + noise in the first block.
F_l sees the H scores of one (query, key) pair at a time: H -> 4H -> 4H -> H with leaky ReLU (0.2) between. Its last
layer starts at 0, so that a fresh model is RealFormer. The noise, normal with `noise_std`, exists only in training.

F_l adds 24 H^2 + 9 H parameters to every block but the first, which has nothing to fuse: an F_1 that is never used
would stall distributed training. (3,564 a block for 12 heads: 39,204 on 12 blocks; 42,768 if the first had one.)

A second reading, also ours, fuses the heads' outputs instead of their logits, with Theta_l = I and g_l = 0 at the
start, where it is the plain ViT, bit for bit (`fuse="value"`):
    Y^l = A^l V^l + g_l Theta_l Y^(l-1),   Theta_l in R^(H x H) over heads
"""

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnprobe.core.errors import InputError, check_choice
from attnprobe.models.attention import TappedAttention, mix_heads, replace_attention
from attnprobe.models.cascade import CascadeViT
from attnprobe.models.variant import Paper, Variant
from attnprobe.models.variants.realformer import ScoreCascade


class HeadMLP(nn.Module):
    """F: a small network over the head axis, the same at every (query, key)."""

    def __init__(self, heads: int, **like: Any) -> None:
        super().__init__()
        self.fc1 = nn.Linear(heads, 4 * heads, **like)
        self.fc2 = nn.Linear(4 * heads, 4 * heads, **like)
        self.fc3 = nn.Linear(4 * heads, heads, **like)
        for layer in (self.fc1, self.fc2, self.fc3):
            nn.init.xavier_uniform_(layer.weight, gain=2**-0.5)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.fc3.weight)

    def forward(self, scores: Tensor) -> Tensor:
        """[image, head, query, key] -> the same.

        Heads last, each layer one matrix product with its bias: 0.4 to 0.8 of the time of the 1x1 convolutions it
        equals (CPU, 12 heads, 17 to 197 tokens). In place where it can: hidden maps are four times as many.
        """
        y = scores.permute(0, 2, 3, 1)
        y = F.leaky_relu_(self.fc1(y), 0.2)
        y = F.leaky_relu_(self.fc2(y), 0.2)
        return self.fc3(y).permute(0, 3, 1, 2)


class RichScores(ScoreCascade):
    """Self-attention whose scores are fused with the previous ones by F, or only added to them."""

    def __init__(self, *args: Any, interacts: bool, noise_std: float, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        like = {"device": self.qkv.weight.device, "dtype": self.qkv.weight.dtype}
        self.interact = HeadMLP(self.num_heads, **like) if interacts else None
        self.noise_std = noise_std

    def fuse(self, scores: Tensor, previous: Tensor | None) -> Tensor:
        """S^l and Z^(l-1) -> Z^l, each [image, head, query, key]."""
        z = super().fuse(scores, previous)
        if self.interact is not None:
            z = z + self.interact(z.to(self.qkv.weight.dtype))  # scores are float32 at least; the model may be less
        return z + self.noise_std * torch.randn_like(z) if self.noise_std and self.training else z


class RichValues(TappedAttention):
    """Self-attention whose heads' outputs are combined with the previous block's; the fused kernel runs."""

    def __init__(self, *args: Any, interacts: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.interacts = interacts
        if interacts:
            like = {"device": self.qkv.weight.device, "dtype": self.qkv.weight.dtype}
            self.theta = nn.Parameter(torch.eye(self.num_heads, **like))
            self.gate = nn.Parameter(torch.zeros(1, **like))

    def forward(self, x: Tensor, carried: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[image, token, width] and the previous block's Y -> the output and this block's Y."""
        y = self.attend(*self.split(x))
        if self.interacts and carried is not None:
            y = y + self.gate * mix_heads(self.theta, carried)
        return self.join(y, x), y


class RichViT(CascadeViT):
    """A ViT with rich head interaction. Our reading; the paper's formula is not public.

    Args:
        cascade: "mlp" fuses with F, "residual" only adds scores up (RealFormer), "none" is the plain ViT.
        fuse: "score" or "value", the first or the second reading.
        noise_std: of the noise on the scores, in training.
        Everything else as timm's `VisionTransformer`.

    Raises:
        InputError: no such choice, or options that do not go together.
    """

    def __init__(
        self,
        *args: Any,
        cascade: Literal["none", "residual", "mlp"] = "mlp",
        fuse: Literal["score", "value"] = "score",
        noise_std: float = 0.0,
        **kwargs: Any,
    ) -> None:
        check_choice("cascade", cascade, ("none", "residual", "mlp"))
        check_choice("fuse", fuse, ("score", "value"))
        if fuse == "value" and cascade == "residual":
            raise InputError('fuse="value" has no residual form in our reading (the paper is silent); drop cascade.')
        if noise_std < 0 or (noise_std and (fuse == "value" or cascade == "none")):
            raise InputError(
                f"noise_std={noise_std} must be >= 0 and acts on scores that are passed on: "
                'it needs fuse="score" and cascade="mlp" or "residual".'
            )
        super().__init__(*args, **kwargs)
        scores = fuse == "score" and cascade != "none"
        block: Any
        for index, block in enumerate(self.blocks):
            interacts = cascade == "mlp" and index > 0
            if scores:
                block.attn = replace_attention(RichScores, block.attn, interacts=interacts, noise_std=noise_std)
            else:
                block.attn = replace_attention(RichValues, block.attn, interacts=interacts)


RICHVIT = Variant(
    name="richvit",
    summary="scores of all heads pass through a small network on to the next block "
    "(our reading; the paper's formula is not public)",
    paper=Paper("rich_attention_heads_interaction", "", None),
    model=RichViT,
)
