"""Attention maps of an initialised model whose tokens are positions alone."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attnprobe.core.errors import ShapeError
from attnprobe.core.grid import TokenGrid
from attnprobe.core.maps import AttentionMaps
from attnprobe.models.initialisers.layers import attention_layers
from attnprobe.models.initialisers.positions import grid_of, patch_positions
from attnprobe.models.initialisers.targets import shifts


def position_maps(model: Any, tokens: Tensor | None = None, *, with_bias: bool = False) -> AttentionMaps:
    """softmax(P Wq^T Wk P^T / sqrt(head width)) of every block and head, as maps of one image called "positions".

    Args:
        model: a timm `VisionTransformer` of equal blocks; its patches only, no class token.
        tokens: P, [patch, width]; layer norm (without parameters) of the model's position table if None.
        with_bias: add the biases of q and k, which impulses are solved without.

    Raises:
        InputError: attention without a fused qkv layer of the usual layout.
    """
    if tokens is None:
        table = patch_positions(model)
        tokens = F.layer_norm(table, table.shape[-1:])
    maps = []
    for layer in attention_layers(model):
        bias = layer.qkv.bias if with_bias else None
        x = F.linear(tokens.to(layer.qkv.weight), layer.qkv.weight.detach(), bias)
        q, k, _ = x.unflatten(-1, (3, layer.num_heads, layer.head_dim)).permute(1, 2, 0, 3)
        maps.append((layer.scale * q @ k.mT).softmax(dim=-1).detach())
    return AttentionMaps(torch.stack(maps)[None], ("positions",), patch_grid(model))


def target_maps(model: Any, offsets: Tensor) -> AttentionMaps:
    """The maps that impulses at these offsets [layer, head, 2] were solved for; see `shifts`.

    Rows whose key lies outside the grid are zero, so not all rows sum to 1.

    Raises:
        ShapeError: other axes.
    """
    if offsets.ndim != 3 or offsets.shape[-1] != 2:
        raise ShapeError(f"offsets must be [layer, head, 2], got {tuple(offsets.shape)}.")
    grid = patch_grid(model)
    values = shifts(grid.rows, grid.cols, offsets.flatten(0, 1)).unflatten(0, offsets.shape[:2])
    return AttentionMaps(values[None], ("targets",), grid, stochastic=False)


def patch_grid(model: Any) -> TokenGrid:
    """The model's patches, without prefix tokens."""
    patch = model.patch_embed.patch_size
    return TokenGrid(*grid_of(model), prefix=(), patch=(int(patch[0]), int(patch[1])))
