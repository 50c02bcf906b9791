"""Which head of one layer is which of another?"""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

HEAD_MATCH = ("index", "hungarian")


def matching(gains: Tensor) -> Tensor:
    """The partner of each head, so that the sum of gains over pairs is largest (Hungarian method).

    Args:
        gains: [..., head, head of the other layer], such as summed cosines.

    Returns:
        [..., head], the index of its partner; a permutation. Heads keep their order where a gain is not finite.
    """
    flat = gains.detach().double().cpu().flatten(0, -3)
    own = torch.arange(gains.shape[-1])
    found = [
        torch.from_numpy(linear_sum_assignment(one.numpy(), maximize=True)[1]) if one.isfinite().all() else own
        for one in flat
    ]
    return torch.stack(found).view(gains.shape[:-1]).to(gains.device)
