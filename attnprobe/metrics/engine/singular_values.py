"""The singular values of every map, exactly."""

import torch
from torch import Tensor


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values in falling order, float64: square roots of a Gram matrix's eigenvalues keep half of the digits.

    Args:
        matrix: [..., query, key].

    Returns:
        [..., min(query, key)], float64; NaN where the matrix is not finite, on which LAPACK would fail.
    """
    finite = matrix.isfinite().all(-1).all(-1)
    values = torch.linalg.svdvals(torch.where(finite[..., None, None], matrix, 0.0).double())
    return torch.where(finite[..., None], values, torch.nan)
