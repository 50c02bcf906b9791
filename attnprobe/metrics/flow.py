"""Attention flow: maximum flow from the input tokens to the class token, with attention weights as capacities."""

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor

from attnprobe.core.errors import InputError
from attnprobe.core.maps import TokenGrid
from attnprobe.core.metric import metric
from attnprobe.metrics.rollout import with_residual

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
