"""Attention rollout: attention to the input tokens, through all blocks below."""

from typing import Any

import torch
from torch import Tensor

from attnprobe.core.errors import InputError
from attnprobe.core.maps import TokenGrid
from attnprobe.core.metric import metric


@metric(
    axes=("layer", "key"), value_range=(0.0, 1.0), needs_stochastic=True, needs_all_layers=True, needs_all_heads=True
)
def attention_rollout(maps: Tensor, grid: TokenGrid, *, residual: float = 0.5) -> Tensor:
    """Attention rollout: how much of the class token after each block comes from each input token.

        R_l = A~_l R_(l-1),   R_0 = 1,   A~_l = residual * 1 + (1 - residual) * mean over h of A[l, h]

    The row of R_l that is the class token's; without a class token the mean over all rows. Abnar & Zuidema 2020,
    arXiv:2005.00928, with residual = 1/2; each row sums to 1. `rollout` returns whole matrices.
    Caveats: values and MLPs are ignored, and the weight of the residual is a convention, not measured.

    Args:
        residual: what the skip connection carries, in [0, 1).
    """
    rolled = rollout(maps, residual)
    return rolled[..., grid.prefix.index("cls"), :] if "cls" in grid.prefix else rolled.mean(-2)


def rollout(maps: Tensor, residual: float = 0.5) -> Tensor:
    """[image, layer, token, input token]: R_l of `attention_rollout`, every row.

    Raises:
        InputError: a residual out of range, or queries that are not the keys.
    """
    if maps.shape[-1] != maps.shape[-2]:
        raise InputError(f"{maps.shape[-2]} queries and {maps.shape[-1]} keys: rollout needs square maps.")
    rolled, carried = [], None
    for mixed in with_residual(maps, residual).unbind(1):
        carried = mixed if carried is None else mixed @ carried
        rolled.append(carried)
    return torch.stack(rolled, 1)


def with_residual(maps: Tensor, residual: float) -> Tensor:
    """[image, layer, query, key]: A~_l, heads averaged and the skip connection added."""
    if not 0 <= residual < 1:
        raise InputError(f"residual={residual} must lie in [0, 1), the share of the skip connection.")
    one: Any = torch.eye(maps.shape[-1], dtype=maps.dtype, device=maps.device)
    return residual * one + (1 - residual) * maps.mean(2)
