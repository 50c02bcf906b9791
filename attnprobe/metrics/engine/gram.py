"""Inner products of all pairs of rows, at half the cost.

A matrix times its own transpose is symmetric, which BLAS knows as `syrk` and PyTorch does not use: 18 ms instead of 31
for 192 rows of 38,809, 25 instead of 39 for 192 maps of 197 x 197 (float32, one AVX-512 core).
"""

from typing import Any

import numpy as np
import torch
from scipy.linalg import get_blas_funcs
from torch import Tensor

FEW = 32
"""Fewer rows than this gain nothing."""


def row_products(x: Tensor) -> Tensor:
    """[..., row, row] of [..., row, entry]."""
    if not _by_blas(x):
        return x @ x.mT
    half = _half(x)
    return half + half.tril(-1).mT


def half_products(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same below the diagonal, [..., row, row] and zero elsewhere; then the diagonal, [..., row]."""
    products = _half(x) if _by_blas(x) else (x @ x.mT).tril()
    diagonal = products.diagonal(dim1=-2, dim2=-1).clone()
    products.diagonal(dim1=-2, dim2=-1).zero_()
    return products, diagonal


def _by_blas(x: Tensor) -> bool:
    usual = x.is_cpu and x.dtype in (torch.float32, torch.float64) and not x.requires_grad
    return usual and x.shape[-2] >= FEW


def _half(x: Tensor) -> Tensor:
    """On and below the diagonal, zero above it."""
    n, width = x.shape[-2:]
    matrices = x.contiguous().view(-1, n, width).numpy()
    syrk: Any = get_blas_funcs("syrk", dtype=matrices.dtype)
    found = np.zeros((len(matrices), n, n), matrices.dtype)
    for matrix, product in zip(matrices, found, strict=True):  # .T: Fortran's upper half is our lower
        syrk(1.0, matrix.T, trans=1, c=product.T, overwrite_c=1)
    return torch.from_numpy(found).view(*x.shape[:-1], n)
