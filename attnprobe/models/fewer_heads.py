"""Attention layers with some of their heads, or with none.

A head is a run of rows of the matrices that make queries, keys and values, and the same run of columns of the output
projection. timm's plain and window attention compute with any number of heads of one width; those of Eva, BEiT and
CaiT's class blocks reshape to the model's width, so `FewerHeads` takes their place.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention, AttentionRope, apply_rot_embed_cat
from timm.models.beit import Attention as BeitAttention
from timm.models.cait import ClassAttn
from timm.models.eva import EvaAttention
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

from attnprobe.models.attention import TappedAttention, replace_attention
from attnprobe.models.variants.attnscale import AttnScale
from attnprobe.models.variants.featscale import FeatScale
from attnprobe.models.variants.gated import GatedAttention


class NoAttention(nn.Module):
    """The attention branch of a block that has lost it: zeros for the tokens that `whole` would update."""

    num_heads = 0

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.class_alone = _is_of_class_token(whole)

    def forward(self, x: Tensor, *_args: Any, **_options: Any) -> Tensor:
        """[image, token, width] -> zeros of this shape, or of the class token's."""
        return torch.zeros_like(x[:, :1] if self.class_alone else x)


class FewerHeads(nn.Module):
    """Some heads of the attention of timm's Eva or BEiT, or of CaiT's class blocks.

    Args:
        whole: the attention; its weights are copied.
        kept: its heads, from 0.
    """

    def __init__(self, whole: Any, kept: Sequence[int]) -> None:
        super().__init__()
        entries = _entries(whole, kept)
        self.num_heads, self.scale = len(kept), whole.scale
        self.class_alone = _is_of_class_token(whole)
        self.q, self.k, self.v = (_rows(layer, entries) for layer in _queries_keys_values(whole))
        self.q_norm, self.k_norm = (getattr(whole, name, nn.Identity()) for name in ("q_norm", "k_norm"))
        self.proj, self.proj_drop = _columns(whole.proj, entries), whole.proj_drop
        self.attn_drop, self.fused_attn = whole.attn_drop, whole.fused_attn  # as timm's classes, so that maps are read
        self.num_prefix_tokens = getattr(whole, "num_prefix_tokens", 0)
        self.rotate_half = getattr(whole, "rotate_half", False)
        self.window_size = getattr(whole, "window_size", None)
        if self.window_size is not None:
            table = whole.relative_position_bias_table.detach()[:, list(kept)]
            self.relative_position_bias_table = nn.Parameter(table.clone())
            self.register_buffer("relative_position_index", whole.relative_position_index.clone(), persistent=False)

    def forward(
        self, x: Tensor, rope: Tensor | None = None, attn_mask: Tensor | None = None, **_options: Any
    ) -> Tensor:
        """[image, token, width] -> the same, or the class token alone; arguments as timm's blocks pass them."""
        queries = x[:, :1] if self.class_alone else x
        q, k, v = (
            layer(tokens).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for layer, tokens in ((self.q, queries), (self.k, x), (self.v, x))
        )
        q, k = self.q_norm(q), self.k_norm(k)
        if rope is not None:
            q, k = (self._rotated(tokens, rope).type_as(v) for tokens in (q, k))
        if self.window_size is not None:
            bias = BeitAttention._get_rel_pos_bias(self)  # type: ignore[arg-type]  # of the heads that are left
            attn_mask = bias if attn_mask is None else bias + attn_mask
        if self.fused_attn:
            dropout = self.attn_drop.p if self.training else 0.0
            y = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout, scale=self.scale)
        else:
            scores = (q * self.scale) @ k.mT
            scores = scores if attn_mask is None else scores + attn_mask
            y = self.attn_drop(scores.softmax(-1)) @ v
        return self.proj_drop(self.proj(y.transpose(1, 2).flatten(2)))

    def _rotated(self, x: Tensor, rope: Tensor) -> Tensor:
        """Queries or keys with rotary positions, which prefix tokens do not have."""
        prefix, patches = x[:, :, : self.num_prefix_tokens], x[:, :, self.num_prefix_tokens :]
        return torch.cat([prefix, apply_rot_embed_cat(patches, rope, half=self.rotate_half)], 2)


def _of_plain(attention: Any, kept: Sequence[int]) -> nn.Module:
    """timm's plain attention, or one of this package's variants, with some of its heads."""
    smaller: Any = replace_attention(TappedAttention, attention) if type(attention) is Attention else attention
    width, entries = smaller.head_dim, _entries(smaller, kept)
    smaller.qkv, smaller.proj = _three_times(smaller.qkv, entries), _columns(smaller.proj, entries)
    if isinstance(smaller, GatedAttention):
        smaller.gate = _rows(smaller.gate, entries)
    if isinstance(smaller, AttnScale):
        smaller.w = nn.Parameter(smaller.w.detach()[list(kept)].clone())
    smaller.num_heads, smaller.attn_dim = len(kept), len(kept) * width
    return smaller


def _of_rope(attention: Any, kept: Sequence[int]) -> nn.Module:
    """timm's attention with rotary positions, with some of its heads."""
    entries = _entries(attention, kept)
    if attention.qkv is not None:
        attention.qkv = _three_times(attention.qkv, entries)
    else:
        for name in ("q_proj", "k_proj", "v_proj"):
            setattr(attention, name, _rows(getattr(attention, name), entries))
    attention.proj = _columns(attention.proj, entries)
    attention.num_heads = attention.num_kv_heads = len(kept)
    attention.attn_dim = attention.kv_dim = len(entries)
    return attention


def _of_windows(attention: Any, kept: Sequence[int]) -> nn.Module:
    """Window attention with some of its heads, each with its column of the table of relative positions."""
    entries = _entries(attention, kept)
    attention.qkv, attention.proj = _three_times(attention.qkv, entries), _columns(attention.proj, entries)
    table = attention.relative_position_bias_table.detach()[:, list(kept)]
    attention.relative_position_bias_table, attention.num_heads = nn.Parameter(table.clone()), len(kept)
    return attention


CUTS: Mapping[type, Callable[[Any, Sequence[int]], nn.Module]] = {
    **dict.fromkeys((Attention, TappedAttention, AttnScale, FeatScale, GatedAttention), _of_plain),
    **dict.fromkeys((EvaAttention, BeitAttention, ClassAttn, FewerHeads), FewerHeads),
    AttentionRope: _of_rope,
    WindowAttention: _of_windows,
}
"""Classes of attention (without their subclasses) whose heads are independent, and how some of them are kept."""


def with_heads(attention: Any, kept: Sequence[int]) -> Any:
    """The attention, which may be changed, with these of its heads (from 0) only; none: `NoAttention`."""
    return CUTS[type(attention)](attention, kept) if kept else NoAttention(attention)


def heads_refusal(attention: Any) -> str:
    """The reason why no head of an attention layer can be removed; empty if one can."""
    kind = type(attention).__name__
    if isinstance(attention, NoAttention):
        return "it has no attention"
    normed = not isinstance(getattr(attention, "norm", nn.Identity()), nn.Identity)
    odd = isinstance(attention, Attention) and type(attention.qkv) is not nn.Linear
    if type(attention) not in CUTS or normed or odd:
        return f"heads of {kind} are mixed, passed on or normalised together"
    if getattr(attention, "gate", None) is not None and not isinstance(attention, GatedAttention):
        return f"heads of {kind} have a gate that is not known here"
    return f"heads of {kind} share keys and values" if getattr(attention, "num_kv_groups", 1) > 1 else ""


def _is_of_class_token(attention: Any) -> bool:
    """True if only the class token has queries."""
    return isinstance(attention, ClassAttn) or getattr(attention, "class_alone", False)


def _entries(attention: Any, kept: Sequence[int]) -> Tensor:
    """Positions of these heads' outputs in the input of the projection."""
    return torch.arange(attention.proj.in_features).view(attention.num_heads, -1)[list(kept)].flatten()


def _queries_keys_values(whole: Any) -> tuple[nn.Linear, nn.Linear, nn.Linear]:
    """The three layers of an attention that has one matrix, with or without separate biases, or three."""
    if isinstance(whole, ClassAttn | FewerHeads):
        return whole.q, whole.k, whole.v
    if whole.qkv is None:
        return whole.q_proj, whole.k_proj, whole.v_proj
    biases = (whole.q_bias, whole.k_bias, whole.v_bias)
    q, k, v = (linear(*pair) for pair in zip(whole.qkv.weight.chunk(3), biases, strict=True))
    return q, k, v


def _three_times(layer: nn.Linear, entries: Tensor) -> nn.Linear:
    """A layer of queries, keys and values one above another, with these rows of each."""
    third = layer.out_features // 3
    return _rows(layer, torch.cat([entries + part * third for part in range(3)]))


def cut_linear(layer: Any, heads: int, kept: Sequence[int], *, axis: int) -> nn.Linear:
    """A layer with the outputs (axis 0) or inputs (axis 1) that belong to some heads, which lie side by side."""
    entries = torch.arange(layer.weight.shape[axis]).view(heads, -1)[list(kept)].flatten()
    return (_rows, _columns)[axis](layer, entries)


def _rows(layer: nn.Linear, kept: Tensor) -> nn.Linear:
    """The layer with a subset of its outputs."""
    return linear(layer.weight.detach()[kept], None if layer.bias is None else layer.bias.detach()[kept])


def _columns(layer: nn.Linear, kept: Tensor) -> nn.Linear:
    """The layer with a subset of its inputs."""
    return linear(layer.weight.detach()[:, kept], layer.bias)


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A layer with a copy of these weights."""
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.detach().clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())
    return layer
