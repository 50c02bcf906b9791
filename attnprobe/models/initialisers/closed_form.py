"""Queries and keys for a wanted attention map, without optimisation: invert the positions, then factorise.

Zheng et al. 2025, "Structured Initialization for Vision Transformers", arXiv:2505.19985, as in the authors' code. For
scores S wanted on a pseudo-input P [patch, width], with a pseudo-inverse P^+ of rank d:
    P^+ S P^+T = U diag(s) V^T,   Wq^T = 7 U sqrt(s) / |U sqrt(s)|,   Wk = 7 sqrt(s) V^T / |sqrt(s) V^T|
    S = 1000 at targets, and small noise elsewhere, fresh for every layer
Departures. Their table is multiplied by 18; a sinusoidal one is not, its entries are of size one as it is. Their
pseudo-inverse keeps d singular values; ours also drops those below 5 % of the largest, because a sinusoidal table has
rank rows + cols - 1 at most and its small singular values, inverted, would take all of the norm: on 16 x 16 patches
of width 192 attention is then uniform (0.004 on the target); with the cut 0.60 of it is on the target.
"""

from typing import NamedTuple

import torch
from timm.layers import trunc_normal_
from torch import Tensor

from attnprobe.models.initialisers.mimetic import split

PEAK = 1000.0
NOISE, NOISE_STD = 3.0, 0.6
NORM = 7.0
"""Frobenius norm of each head's Wq and Wk."""

SMALLEST = 0.05
"""Singular values below this part of the largest count as zero. Mass on the target for 0.01, 0.05 and 0.1: 0.05, 0.60
and 0.72 on 16 x 16 patches of width 192 (but at 0.1 the largest weight is on the target in 84 % of the rows, not all),
0.62, 0.96 and 0.82 on 14 x 14 of width 768, 0.24, 0.87 and 0.87 on 8 x 8 of width 48."""


class Inverse(NamedTuple):
    """The truncated pseudo-inverse of a pseudo-input, P^+ = right @ left^T; float64.

    Attributes:
        left: [patch, rank], left singular vectors over singular values.
        right: [width, rank], right singular vectors.
    """

    left: Tensor
    right: Tensor


def invert(tokens: Tensor, head_width: int) -> Inverse:
    """Pseudo-input [patch, width] -> its pseudo-inverse of rank `head_width` at most."""
    u, s, vh = torch.linalg.svd(tokens.double(), full_matrices=False)
    rank = min(head_width, int((s > SMALLEST * s[0]).sum()))
    return Inverse(u[:, :rank] / s[:rank], vh[:rank].mT)


def wanted_scores(targets: Tensor) -> Tensor:
    """Targets [head, query, key] of zeros and ones -> scores: a peak where they are one, noise elsewhere."""
    noise = trunc_normal_(torch.empty_like(targets, device="cpu"), std=NOISE_STD).to(targets.device)
    return PEAK * targets + NOISE * noise * (1 - targets)


def solve(inverse: Inverse, scores: Tensor) -> tuple[Tensor, Tensor]:
    """Scores [head, query, key] -> q [head, width, rank], k [head, rank, width], each head's of norm 7.

    The singular vectors of P^+ S P^+T are those of a rank x rank matrix, turned: no decomposition of width x width.
    """
    core = inverse.left.mT @ scores.double() @ inverse.left
    q, k = split(core, core.shape[-1])
    q, k = inverse.right @ q, k @ inverse.right.mT
    return (NORM * q / _size(q)).float(), (NORM * k / _size(k)).float()


def _size(matrices: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(matrices, keepdim=True)
