"""Attention rollout and attention flow: attention to the input tokens, through all blocks below."""

from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
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


UNIT = 2**24
"""Capacities are whole numbers to SciPy: a flow of 1 is this many, so a capacity is rounded by at most 3e-8."""


@metric(
    axes=("layer", "key"),
    value_range=(0.0, 1.0),
    needs_stochastic=True,
    needs_all_layers=True,
    needs_all_heads=True,
    needs_prefix=True,
)
def attention_flow(maps: Tensor, grid: TokenGrid, *, residual: float = 0.5) -> Tensor:
    """Attention flow: the maximum flow from the class token after each block to each input token.

        F[l, j] = maximum flow from (l, 0) to (0, j),      capacity from (m, i) to (m - 1, k) = A~_m[i, k]

    The network has a node (m, i) for every token i after every block m, 0 for the input, and A~ is that of
    `attention_rollout`; token 0 is the class token. Abnar & Zuidema 2020, arXiv:2005.00928. Never below the rollout,
    whose paths are one of the flows; the flows to different tokens share the pipes and do not sum to 1.

    Cost: L K maximum flows over up to L K^2 edges. Seconds an image for 16 blocks of 17 tokens, hours for 197: not part
    of "all".

    Caveat: the more blocks, the more pipes lead to every token, until flows are full and tell nothing: under uniform
    attention with residual = 1/2, those to patches are 1/(2 K) after one block, 1/2 after two and 1 from the fourth on.

    Args:
        residual: what the skip connection carries, in [0, 1).
    """
    if "cls" not in grid.prefix:
        raise InputError("attention_flow starts at the class token, and there is none; attention_rollout needs none.")
    source = grid.prefix.index("cls")
    capacities = np.rint(with_residual(maps, residual).double().cpu().numpy() * UNIT)
    flows = [
        _flows(image, source) if np.isfinite(image).all() else np.full(image.shape[:2], np.nan) for image in capacities
    ]
    return (torch.from_numpy(np.stack(flows)).to(maps) / UNIT).clamp(max=1)  # rounded capacities may add up to more


def _flows(capacities: np.ndarray, source: int) -> np.ndarray:
    """[layer, query, key] -> [layer, key]: from node (layer + 1, source) to node (0, key)."""
    layers, n, _ = capacities.shape
    layer, query, key = np.indices(capacities.shape).reshape(3, -1)
    ends = tuple(end.astype(np.int32) for end in ((layer + 1) * n + query, layer * n + key))  # older SciPy wants int32
    graph = csr_array((capacities.astype(np.int32).ravel(), ends), shape=((layers + 1) * n,) * 2)
    return np.array(
        [[maximum_flow(graph, (layer + 1) * n + source, key).flow_value for key in range(n)] for layer in range(layers)]
    )
