"""When many cells are compared, which differences are real?"""

import numpy as np

LEVEL = 0.05
"""Of the chance that a cell is called different although no cell of its metric is."""


def holm(p: np.ndarray) -> np.ndarray:
    """p-values adjusted so that the chance of even one false alarm among them stays below any level they are held to.

    Holm 1979, step-down: of m values in rising order the k-th (from 1) is multiplied by m - k + 1, is at least as large
    as the one before, and at most 1.

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
