"""Holm's correction of p-values for many comparisons."""

import numpy as np

LEVEL = 0.05
"""Family-wise error rate: chance that any cell is called different although none of its metric is."""


def holm(p: np.ndarray) -> np.ndarray:
    """p-values adjusted for the family-wise error rate: compared with a level, the chance of any false alarm is below
    it.

    Holm 1979, step-down: of m values in rising order the k-th (from 1) is multiplied by m - k + 1, is at least as large
    as the previous one, and at most 1.

    Args:
        p: [any], without NaN.

    Returns:
        Like `p`.
    """
    flat = np.asarray(p, dtype=float).ravel()
    order = np.argsort(flat, kind="stable")
    factors = len(flat) - np.arange(len(flat))
    adjusted = np.empty_like(flat)
    adjusted[order] = np.minimum(np.maximum.accumulate(flat[order] * factors), 1)
    return adjusted.reshape(np.shape(p))
