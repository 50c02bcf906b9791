"""Queries and keys for a wanted attention map, by optimisation.

Zheng et al. 2024, "Structured Initialization for Attention in Vision Transformers", arXiv:2404.01139, as in the
authors' code: 10,000 steps of Adam on the mean squared error between softmax(scale P Q K P^T) and the targets.
Before every 100th step the columns of Q over the width, and those of K over the head width, are set to the mean norm
the columns of Q started with; Adam's moments are kept.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

STEPS, NORM_EVERY, LEARNING_RATE = 10_000, 100, 1e-4


class Solution(NamedTuple):
    """Factors per head, and how they came about.

    Attributes:
        q: [head, width, head width]; k: [head, head width, width].
        losses: [step], before each step; column_norm: what columns were reset to.
    """

    q: Tensor
    k: Tensor
    losses: Tensor
    column_norm: float


def draw_start(heads: int, width: int, head_width: int) -> tuple[Tensor, Tensor]:
    """Uniform q [head, width, head width], then k [head, head width, width], within 1 / sqrt(head width * heads)."""
    bound = (head_width * heads) ** -0.5
    q = torch.empty(heads, width, head_width, device="cpu").uniform_(-bound, bound)
    return q, torch.empty(heads, head_width, width, device="cpu").uniform_(-bound, bound)


def solve(tokens: Tensor, targets: Tensor, q: Tensor, k: Tensor, *, steps: int = STEPS) -> Solution:
    """Factors whose attention on a pseudo-input comes near the targets.

    Args:
        tokens: [patch, width], the pseudo-input; its device and type are used.
        targets: [head, query, key].
        q, k: where to start, see `draw_start`; left as they are.
        steps: of Adam.
    """
    scale = q.shape[-1] ** -0.5
    targets = targets.to(tokens)
    q, k = q.to(tokens, copy=True).requires_grad_(), k.to(tokens, copy=True).requires_grad_()
    column_norm = q.detach().norm(dim=1).mean()
    optimiser = torch.optim.Adam([q, k], lr=LEARNING_RATE)
    losses = torch.empty(steps, device=tokens.device)
    with torch.enable_grad(), torch.autocast(tokens.device.type, enabled=False):
        for step in range(steps):
            if step % NORM_EVERY == 0:
                for factor in (q.data, k.data):
                    factor *= column_norm / factor.norm(dim=1, keepdim=True)
            scores = (tokens @ (scale * q)) @ (k @ tokens.mT)
            loss = F.mse_loss(scores.softmax(dim=-1), targets)
            losses[step] = loss.detach()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return Solution(q.detach(), k.detach(), losses, column_norm.item())
