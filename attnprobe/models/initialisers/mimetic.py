"""Mimetic initialisation: products of weights are a multiple of the identity plus noise, as after training.

Trockman & Kolter 2023, "Mimetic Initialization of Self-Attention Layers", arXiv:2305.09828. With Z of variance 1/D:
    queries, keys    per head, Wq^T Wk is the best approximation of its rank to alpha Z + beta I (alpha = beta = 0.7)
    values, output   Wproj Wv = 0.4 Z - 0.4 I, split evenly
"""

from typing import Literal

import torch
from torch import Tensor

Compat = Literal["repo", "exact"]

VALUE_NOISE, VALUE_IDENTITY = 0.4, -0.4


def uniform_noise(*shape: int) -> Tensor:
    """Uniform numbers of variance 1 / (last axis)."""
    bound = (3 / shape[-1]) ** 0.5
    return torch.empty(shape, device="cpu").uniform_(-bound, bound)


def split(product: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """[..., m, n] -> L [..., m, rank], R [..., rank, n]: L R is nearest to the product, and both weigh the same."""
    u, s, vh = torch.linalg.svd(product, full_matrices=False)
    root = s[..., :rank].sqrt()
    return u[..., :rank] * root[..., None, :], root[..., :, None] * vh[..., :rank, :]


def query_key(noise: Tensor, head_width: int, alpha: float, beta: float) -> tuple[Tensor, Tensor]:
    """Noise [head, width, width] -> q [head, width, head width], k [head, head width, width]."""
    return split(alpha * noise + beta * torch.eye(noise.shape[-1], device=noise.device), head_width)


def value_output(noise: Tensor, compat: Compat = "exact") -> tuple[Tensor, Tensor]:
    """Noise [width, width] -> weights of value and output projection, both [width, width].

    A token y becomes Wproj Wv y. "exact": Wproj Wv is the matrix wanted. "repo": Wv Wproj is, as the authors' code
    stores the two; what is applied to tokens then has the same trace and eigenvalues, but is another matrix.
    """
    wanted = VALUE_NOISE * noise + VALUE_IDENTITY * torch.eye(len(noise), device=noise.device)
    left, right = split(wanted, len(wanted))
    return (right, left) if compat == "exact" else (left, right)
