"""What is compared when two attention maps are compared token by token?"""

import torch
from torch import Tensor

from attnprobe.core.errors import InputError, check_choice

ROUNDING = 16
"""A centred vector shorter than this many machine epsilons of the raw one is rounding, and counts as zero."""


def unit_vectors(maps: Tensor, axis: str = "key", center: str = "none", exclude_prefix: int = 0) -> Tensor:
    """Scale the vector of every token to length 1.

    Args:
        maps: [..., query, key].
        axis: "key": the vector of token t is the column A[:, t], how much t gives to each query (arXiv:2103.11886).
            "query": it is the row A[t, :], where t looks.
        center: "none"; "mean": subtract from each vector the mean of its entries, so that its cosine is a correlation;
            "uniform": subtract 1/K, the entry of uniform attention over K keys.
        exclude_prefix: leave out the vectors of the first tokens. The other vectors keep all their entries.

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
