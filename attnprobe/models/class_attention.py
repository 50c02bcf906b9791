"""How does a class token read the patches without disturbing them? Class attention: it alone asks.

Touvron et al. 2021, "Going deeper with Image Transformers", arXiv:2103.17239, in the form in which it lies unused in
Refiner's public code, with its parameter names. Patches pass through a `ClassBlock` unchanged.
Its maps are [image, head, 1, key], another shape than self-attention's, and carry no taps.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn


class ClassAttention(nn.Module):
    """Attention with one query, the class token (token 0); keys and values are all tokens, itself included.

    Args:
        dim: width of the tokens.
        num_heads: H.
        head_dim: width of one head, `dim // num_heads` if None.
        qkv_bias: whether queries, keys and values have biases.
        attn_drop, proj_drop: dropout of the map and of the output.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        head_dim: int | None = None,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        **like: Any,
    ) -> None:
        super().__init__()
        self.num_heads, self.attn_drop = num_heads, attn_drop
        wide = num_heads * (head_dim or dim // num_heads)
        self.q = nn.Linear(dim, wide, bias=qkv_bias, **like)
        self.kv = nn.Linear(dim, 2 * wide, bias=qkv_bias, **like)
        self.proj = nn.Linear(wide, dim, **like)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """[image, token, width] -> what the class token read, [image, 1, width]."""
        q = self.q(x[:, :1]).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k, v = self.kv(x).unflatten(-1, (2, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.attn_drop if self.training else 0.0)
        return self.proj_drop(self.proj(y.transpose(1, 2).flatten(2)))


class ClassBlock(nn.Module):
    """A pre-norm block that updates the class token alone: [image, token, width] -> the same.

    Args:
        dim, num_heads, head_dim, qkv_bias, attn_drop, proj_drop: of its `ClassAttention`.
        mlp_ratio: hidden width of the MLP over `dim`.
        drop_path: stochastic depth of both branches.
        act_layer, norm_layer, mlp_layer: classes, as in timm's blocks.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        head_dim: int | None = None,
        mlp_ratio: float = 4.0,
        qkv_bias: bool = False,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        drop_path: float = 0.0,
        act_layer: Callable[..., nn.Module] = nn.GELU,
        norm_layer: Callable[..., nn.Module] = nn.LayerNorm,
        mlp_layer: Callable[..., nn.Module] = Mlp,
        **like: Any,
    ) -> None:
        super().__init__()
        self.norm1 = norm_layer(dim, **like)
        self.attn = ClassAttention(dim, num_heads, head_dim, qkv_bias, attn_drop, proj_drop, **like)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = norm_layer(dim, **like)
        self.mlp = mlp_layer(dim, int(dim * mlp_ratio), act_layer=act_layer, drop=proj_drop, **like)

    def forward(self, x: Tensor) -> Tensor:
        token = x[:, :1]
        token = token + self.drop_path(self.attn(self.norm1(x)))
        token = token + self.drop_path(self.mlp(self.norm2(token)))
        return torch.cat([token, x[:, 1:]], dim=1)
