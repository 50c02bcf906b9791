"""Refiner: attention maps are expanded over heads and convolved like images before the product with V.

Zhou et al. 2021, "Refiner: Refining Self-attention for Vision Transformers", arXiv:2106.03714, as in the authors'
public code:
    distributed local attention   DLA(A) = A + BN(Conv1x1(ReLU6(BN(Conv3x3_depthwise(ReLU6(BN(Conv1x1(A))))))))
    a block with its own softmax  A_l = softmax(Q K^T / sqrt(P)) + A_{l-1} / sqrt(P);   may be refined: BN(DLA(A_l))
    a sharing block               uses BN(DLA(A_{l-1})) / sqrt(P), has no Q and K, and passes on A_{l-1} unrefined
The registered models alternate the two kinds. Every block doubles its branches (`scale_adjustment` 0.5) and its MLP
has a per-channel scale that starts at 1e-5.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import Attention, Mlp
from torch import Tensor, nn

from attnprobe.core.errors import InputError, ShapeError
from attnprobe.models.attention import TappedAttention, mix_heads, replace_attention
from attnprobe.models.cascade import CascadeViT
from attnprobe.models.conv_stem import RefinerStemEmbed
from attnprobe.models.variant import Paper, Variant

SHARED_EXPANSION = 3
"""Expansion inside sharing blocks; the authors' `head_expand` does not reach them."""


class Carried(NamedTuple):
    """Output of a block besides its tokens: the map for the next block, and its softmax, for hooks on the tap."""

    map: Tensor
    softmax: Tensor


class DLA(nn.Module):
    """Distributed local attention: [image, head, query, key] -> the same, class-token row and column included.

    Parameter names are the authors'. With `expand=1` the first convolution, its norm and ReLU6 are missing;
    `mode="conv"` is one dense convolution over heads, queries and keys, with neither norm nor identity.
    """

    def __init__(
        self,
        heads: int,
        expand: float = SHARED_EXPANSION,
        kernel: int = 3,
        heads_out: int | None = None,
        mode: Literal["expand", "conv"] = "expand",
    ) -> None:
        super().__init__()
        wide, heads_out = round(heads * expand), heads_out or heads
        self.mode, self.expands, self.adds_input = mode, expand != 1, heads == heads_out
        if mode == "conv":
            self.conv = nn.Conv2d(heads, heads_out, kernel, padding=kernel // 2, bias=False)
            return
        if self.expands:
            self.conv_exp = nn.Conv2d(heads, wide, 1, bias=False)
            self.bn1 = nn.BatchNorm2d(wide)
        self.depth_sep_conv = nn.Conv2d(wide, wide, kernel, padding=kernel // 2, groups=wide, bias=False)
        self.bn2 = nn.BatchNorm2d(wide)
        self.conv_pro = nn.Conv2d(wide, heads_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(heads_out)

    def forward(self, maps: Tensor) -> Tensor:
        if self.mode == "conv":
            return self.conv(maps)
        y = F.relu6(self.bn1(mix_heads(self.conv_exp.weight, maps))) if self.expands else maps
        y = F.relu6(self.bn2(self.depth_sep_conv(y)))
        y = self.bn3(mix_heads(self.conv_pro.weight, y))
        return maps + y if self.adds_input else y


class RefinedAttention(TappedAttention):
    """Attention of one Refiner block: with its own softmax, or sharing the previous block's map."""

    mixes = True

    def __init__(self, *args, shares: bool = False, refines: bool = False, expand: float = 3, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.shares, self.refines = shares, refines
        if shares or refines:
            self.DLA = DLA(self.num_heads, SHARED_EXPANSION if shares else expand)
            self.adapt_bn = nn.BatchNorm2d(self.num_heads)

    def forward(self, x: Tensor, carried: Carried | None = None) -> tuple[Tensor, Carried]:
        """[image, token, width] and the previous block's map -> the output and the map for the next block."""
        if self.shares:
            assert carried is not None  # Refiner refuses a sharing first block
            v = self.qkv(x).unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)
            self.taps["weights"](carried.softmax)
            used = self.adapt_bn(self.DLA(carried.map)) * self.scale
        else:
            q, k, v = self.split(x)
            root = self.scale**0.5
            softmax = self.taps["weights"]((q * root @ (k * root).mT).softmax(dim=-1))
            used = softmax if carried is None else softmax + self.scale * carried.map
            used = self.attn_drop(used)
            if self.refines:
                used = self.adapt_bn(self.DLA(used))
            carried = Carried(used, softmax)
        return self.join(self.taps["effective"](used) @ v, x), carried


class ScaledMlp(Mlp):
    """timm's MLP whose output has a learned scale per channel."""

    def __init__(self, in_features: int, *args, **kwargs) -> None:
        super().__init__(in_features, *args, **kwargs)
        self.scale_channel = nn.Parameter(torch.full_like(self.fc2.weight[:, 0], 1e-5))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.scale_channel


class Refiner(CascadeViT):
    """A ViT with refined attention.

    Args:
        share: per block, whether it reuses the previous block's map; "alternate" for every second block, as the
            registered models do; None for none.
        refine: per block, whether it refines its own map; None for none. No registered model does.
        qk_scale: in place of 1 / sqrt(P), wherever that is used; None or 0 for that.
        head_expand: expansion in blocks that refine their own map (sharing blocks always expand by 3).
        dense: a second head on every patch; evaluation adds half of its maximum over patches, training returns
            (class logits, patch logits [image, patch, class], box).
        mix_token: in training, swap a random box of patches with the batch in reverse order. Needs `dense`.
        conv_stem: the three-layer convolutional patch embedding.
        Everything else as timm's `VisionTransformer`.

    Raises:
        InputError: the first block shares (there is no map before it), or `mix_token` without `dense`.
        ShapeError: `share` or `refine` has not one entry per block.
    """

    def __init__(
        self,
        *args,
        share: Sequence[bool] | Literal["alternate"] | None = None,
        refine: Sequence[bool] | None = None,
        head_expand: float = 3,
        qk_scale: float | None = None,
        dense: bool = False,
        mix_token: bool = False,
        conv_stem: bool = False,
        **kwargs,
    ) -> None:
        if conv_stem:
            kwargs["embed_layer"] = RefinerStemEmbed
        super().__init__(*args, mlp_layer=ScaledMlp, **kwargs)
        depth = len(self.blocks)
        if share == "alternate":
            share = [block % 2 == 1 for block in range(depth)]
        share = tuple(share) if share is not None else (False,) * depth
        refine = tuple(refine) if refine is not None else (False,) * depth
        if len(share) != depth or len(refine) != depth:
            raise ShapeError(
                f"share and refine need one entry per block ({depth}), got {len(share)} and {len(refine)}."
            )
        if share[0]:
            raise InputError("the first block cannot share: there is no attention map before it (share[0]=True).")
        if mix_token and not dense:
            raise InputError("mix_token needs the dense head: its patch labels say which image a patch came from.")
        block: Any
        for block, shares, refines in zip(self.blocks, share, refine, strict=True):
            block.scale_adjustment = 0.5
            block.attn = _refined(block.attn, shares, refines and not shares, head_expand)
            block.attn.scale = qk_scale or block.attn.scale
        self.dense, self.mix_token = dense, mix_token
        if dense:
            self.aux_head = _as_timm_starts(nn.Linear(self.embed_dim, self.num_classes))

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False):
        """[image, channel, row, col] -> logits; in training with a dense head (logits, patch logits, box).

        `box` is (row0, col0, row1, col1) on the patch grid, ends exclusive, empty if no patches were swapped.
        """
        if attn_mask is not None or is_causal:
            raise InputError("refined attention takes no mask: its convolutions and norms would mix masked entries in.")
        box = self._box() if self.training and self.mix_token else (0, 0, 0, 0)
        tokens = self.forward_features(x, box)
        logits = self.forward_head(tokens)
        if not self.dense:
            return logits
        patch_logits = self.aux_head(tokens[:, self.num_prefix_tokens :])
        if self.training:
            return logits, self._swapped(patch_logits, box), box
        return logits + 0.5 * patch_logits.max(1).values

    def forward_features(self, x: Tensor, box: tuple[int, int, int, int] = (0, 0, 0, 0)) -> Tensor:
        """[image, channel, row, col] -> the normalised output of the last block, [image, token, width]."""
        patches = self.patch_embed(x)
        if any(box):
            patches = self._swapped(patches, box)
        tokens = self.blocks(self.norm_pre(self.patch_drop(self._pos_embed(patches))))
        return self.norm(tokens)

    def _box(self) -> tuple[int, int, int, int]:
        """A CutMix box on the patch grid whose share of the patches is 1 - Beta(1, 1)."""
        rows, cols = self.patch_embed.grid_size
        share = torch.rand(3).tolist()
        side = (1 - share[0]) ** 0.5
        height, width = int(rows * side), int(cols * side)
        row, col = int(rows * share[1]), int(cols * share[2])
        row0, col0 = max(row - height // 2, 0), max(col - width // 2, 0)
        return row0, col0, min(row + height // 2, rows), min(col + width // 2, cols)

    def _swapped(self, patches: Tensor, box: tuple[int, int, int, int]) -> Tensor:
        """[image, patch, any]: the patches in the box come from the batch in reverse order."""
        row0, col0, row1, col1 = box
        grid = patches.unflatten(1, self.patch_embed.grid_size)
        mixed = grid.clone()
        mixed[:, row0:row1, col0:col1] = grid.flip(0)[:, row0:row1, col0:col1]
        return mixed.flatten(1, 2)


def _refined(plain: Attention, shares: bool, refines: bool, expand: float) -> RefinedAttention:
    attention = replace_attention(RefinedAttention, plain, shares=shares, refines=refines, expand=expand)
    if shares:  # neither queries nor keys
        wide = attention.qkv
        attention.qkv = _as_timm_starts(nn.Linear(wide.in_features, wide.out_features // 3, bias=wide.bias is not None))
    return attention


def _as_timm_starts(linear: nn.Linear) -> nn.Linear:
    """Truncated normal weights with standard deviation 0.02 and no bias, as every linear layer of a timm ViT."""
    nn.init.trunc_normal_(linear.weight, std=0.02)
    if linear.bias is not None:
        nn.init.zeros_(linear.bias)
    return linear


REFINER = Variant(
    name="refiner",
    summary="maps expanded over heads and convolved before they multiply V; every second block shares a map",
    paper=Paper("zhou2021refiner", "2106.03714", 2021),
    model=Refiner,
    options={"share": "alternate"},
    sites=("weights", "effective"),
)
