"""Renormalisation: rows that sum to 1 from maps that are no distributions."""

import torch
from torch import Tensor


def shares_of_magnitude(maps: Tensor) -> Tensor:
    """Each entry as the share of its row's absolute values: |A[i, j]| / sum_j |A[i, j]|.

    Maps that a variant mixed, normalised or gated after the softmax have signs and rows of any sum. Their absolute
    values say how strongly a query draws on a key, for or against, and nothing is thrown away; the choice is ours.
    Rows that sum to 1 without negative entries stay as they are.

    Args:
        maps: [..., query, key].

    Returns:
        Like `maps`, rows that sum to 1; NaN in a row of zeros, which has no shares.
    """
    size = maps.abs()
    return size / torch.where((total := size.sum(-1, keepdim=True)) > 0, total, torch.nan)
