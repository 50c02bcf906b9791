"""DeepViT: heads are mixed after the softmax, so that deep layers keep distinct maps.

Zhou et al. 2021, "DeepViT: Towards Deeper Vision Transformer", arXiv:2103.11886:
    Re-Attention(Q, K, V) = Norm(Theta^T softmax(Q K^T / sqrt(P))) V,   Theta in R^(H x H)

As in the authors' code, Theta has a bias and PyTorch's default convolution initialisation, Norm is a batch
norm over heads, and every block may divide its two residual branches by `scale_adjustment` s after
multiplying their input by s (layer norm removes the second, so s = 0.5 doubles both branches).
The mixed map may be negative and its rows do not sum to 1.
"""

from collections.abc import Sequence
from typing import Any

from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from attnprobe.core.errors import ShapeError
from attnprobe.models.attention import TappedAttention, mix_heads, replace_attention
from attnprobe.models.conv_stem import ConvStemEmbed
from attnprobe.models.variant import Paper, Variant


class ReAttention(TappedAttention):
    """Self-attention whose heads are re-mixed by a learned head x head matrix.

    Parameter names are the authors': `reatten_matrix` (Theta, stored as a 1x1 convolution), `var_norm`.
    """

    mixes = True

    def __init__(self, *args, transform_scale: bool = False, qk_scale: float | None = None, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.scale = qk_scale or self.scale
        dd = {"device": self.qkv.weight.device, "dtype": self.qkv.weight.dtype}
        self.reatten_matrix = nn.Conv2d(self.num_heads, self.num_heads, 1, **dd)
        self.var_norm = nn.BatchNorm2d(self.num_heads, **dd)
        self.effective_scale = self.scale if transform_scale else 1.0

    def mix(self, weights: Tensor) -> Tensor:
        """Theta^T A and the norm."""
        mixed = self.var_norm(mix_heads(self.reatten_matrix.weight, weights, self.reatten_matrix.bias))
        return mixed if self.effective_scale == 1.0 else mixed * self.effective_scale


class ScaledBlock(Block):
    """A pre-norm block whose two branches see `s * x` and are divided by `s`."""

    scale_adjustment = 1.0

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """[image, token, width] -> the same."""
        s = self.scale_adjustment
        y = self.attn(self.norm1(x * s), attn_mask=attn_mask, is_causal=is_causal)
        x = x + self.drop_path1(self.ls1(y)) / s
        return x + self.drop_path2(self.ls2(self.mlp(self.norm2(x * s)))) / s


class DeepViT(VisionTransformer):
    """A ViT with re-attention in some or all blocks.

    Args:
        reattention: which blocks (from 0) mix their heads; None for all of them.
        transform_scale: multiply the mixed map by 1 / sqrt(P) again, as DeepViT-S does.
        scale_adjustment: s of `ScaledBlock`; acts in every block.
        qk_scale: factor of the logits in place of 1 / sqrt(P), also for `transform_scale`; None or 0 for that.
        conv_stem: the convolutional patch embedding of the S and L models.
        Everything else as timm's `VisionTransformer`.

    Raises:
        ShapeError: `reattention` names a block the model does not have.
    """

    def __init__(
        self,
        *args,
        reattention: Sequence[int] | None = None,
        transform_scale: bool = False,
        scale_adjustment: float = 1.0,
        qk_scale: float | None = None,
        conv_stem: bool = False,
        **kwargs,
    ) -> None:
        if conv_stem:
            kwargs["embed_layer"] = ConvStemEmbed
        super().__init__(*args, block_fn=ScaledBlock, **kwargs)
        chosen = range(len(self.blocks)) if reattention is None else reattention
        if not set(chosen) <= set(range(len(self.blocks))):
            raise ShapeError(f"reattention={list(chosen)} names blocks outside 0..{len(self.blocks) - 1}.")
        block: Any
        for index, block in enumerate(self.blocks):
            block.scale_adjustment = scale_adjustment
            if index in chosen:
                options = {"transform_scale": transform_scale, "qk_scale": qk_scale}
                block.attn = replace_attention(ReAttention, block.attn, **options)
            elif qk_scale:  # timm's fused path takes no other scale
                block.attn = replace_attention(TappedAttention, block.attn)
                block.attn.scale = qk_scale


DEEPVIT = Variant(
    name="deepvit",
    summary="re-attention: a learned head x head matrix and batch norm after the softmax",
    paper=Paper("zhou2021deepvit", "2103.11886", 2021),
    model=DeepViT,
    sites=("weights", "effective"),
)
