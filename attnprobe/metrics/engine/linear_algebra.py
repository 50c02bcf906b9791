"""Linear algebra that metrics share: products of rows, singular values, sorted rows, vectors of unit length.

A matrix times its own transpose is symmetric, which BLAS knows as `syrk` and PyTorch does not use: 18 ms instead of 31
for 192 rows of 38,809, 25 instead of 39 for 192 maps of 197 x 197 (float32, one AVX-512 core).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from scipy.linalg import get_blas_funcs
from torch import Tensor

from attnprobe.core.errors import InputError, check_choice

FEW = 32
"""Below this many rows `syrk` gains nothing."""


def row_products(x: Tensor) -> Tensor:
    """[..., row, row] of [..., row, entry]."""
    if not _by_blas(x):
        return x @ x.mT
    half = _half(x)
    return half + half.tril(-1).mT


def half_products(x: Tensor) -> tuple[Tensor, Tensor]:
    """`row_products` below the diagonal, [..., row, row] and zero elsewhere; then the diagonal, [..., row]."""
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


_Decomposed = dict[tuple[Any, ...], tuple[Tensor, Tensor]]
_DECOMPOSED: ContextVar[_Decomposed | None] = ContextVar("_DECOMPOSED", default=None)


@contextmanager
def shared_decompositions() -> Iterator[None]:
    """Within it the singular values of a matrix are computed once, whoever asks for them."""
    token = _DECOMPOSED.set({})
    try:
        yield
    finally:
        _DECOMPOSED.reset(token)


def singular_values(matrix: Tensor) -> Tensor:
    """[..., query, key] -> [..., min(query, key)], float64, in falling order; NaN where a matrix is not finite.

    LAPACK would fail on that. By the SVD: square roots of a Gram matrix's eigenvalues keep half of the digits. On the
    CPU, because CUDA's libraries decompose a batch of matrices of more than 32 rows one after the other.
    """
    shared = _DECOMPOSED.get()
    if shared is None:
        return _singular_values(matrix)
    place = (matrix.data_ptr(), matrix.shape, matrix.stride(), matrix.dtype, matrix.device)
    if place not in shared:  # the matrix is kept beside its values: freed, another could come to its place in memory
        shared[place] = matrix, _singular_values(matrix)
    return shared[place][1]


def _singular_values(matrix: Tensor) -> Tensor:
    finite = matrix.isfinite().all(-1).all(-1)
    values = torch.linalg.svdvals(torch.where(finite[..., None, None], matrix, 0.0).cpu().double())
    return torch.where(finite[..., None], values.to(matrix.device), torch.nan)


def ascending(rows: Tensor) -> Tensor:
    """The rows sorted over the last axis, NaN last; on a CPU by NumPy: 13 ms instead of 120 for 16 x 12 x 197 rows of
    197."""
    if rows.is_cpu:
        return torch.from_numpy(np.sort(rows.numpy(), axis=-1))
    return rows.sort(-1).values


ROUNDING = 16
"""A centred vector shorter than this many machine epsilons of the raw one is rounding, and counts as zero."""


def unit_vectors(maps: Tensor, axis: str = "key", center: str = "none", exclude_prefix: int = 0) -> Tensor:
    """Scale the vector of every token to length 1.

    Args:
        maps: [..., query, key].
        axis, center, exclude_prefix: settings of `layer_similarity`, explained there.

    Returns:
        Like `maps` without the excluded tokens. A vector that is zero, or zero up to rounding once centred, stays zero,
        so its cosine with everything is 0; so do vectors shorter than 3e-16, whose squares lose digits in float32.

    Raises:
        InputError: an unknown axis or centre, or no token left.
    """
    check_choice("axis", axis, ("key", "query"))
    check_choice("center", center, ("none", "mean", "uniform"))
    entry = -2 if axis == "key" else -1
    n_tokens, n_keys = maps.shape[-3 - entry], maps.shape[-1]
    if not 0 <= exclude_prefix < n_tokens:
        raise InputError(f"exclude_prefix={exclude_prefix} must leave at least one of {n_tokens} tokens to compare.")
    maps = maps.narrow(-3 - entry, exclude_prefix, n_tokens - exclude_prefix)
    squared_length = maps.square().sum(entry, keepdim=True)
    precise = torch.finfo(maps.dtype)
    floor = precise.tiny / precise.eps  # what is smaller has lost digits, and would come out longer than 1
    if center != "none":
        floor = (squared_length * (ROUNDING * precise.eps) ** 2).clamp_min(floor)
        maps = maps - (maps.mean(entry, keepdim=True) if center == "mean" else 1.0 / n_keys)
        squared_length = maps.square().sum(entry, keepdim=True)
    return maps * torch.where(squared_length > floor, squared_length.rsqrt(), 0.0)
