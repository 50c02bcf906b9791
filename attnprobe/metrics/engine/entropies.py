"""Sums of x ln x over attention maps and over mixtures of two heads, in float64.

On a CPU by NumPy, whose log2 takes 0.2 ns per entry where torch.log takes 1.1 (float32, AVX-512), block by block in
memory that is used again: the mixtures of one head with eleven others do not fit into a cache.
"""

import math
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from attnprobe.core.sharing import shared
from attnprobe.metrics.engine.compiled import kernels

PART = 2048
"""So many products are summed up in the precision of the maps, and their sums in float64."""

BLOCK = 4 * PART
"""Entries of each head of a layer that are worked on at once on a CPU: with 12 heads about 1 MiB in float32."""

AT_ONCE = 40 * BLOCK
"""Entries of maps that are worked on at once on a CPU, 1.3 MiB in float32, in new memory for their logarithms.

16 x 12 x 197 x 197 take 3.3 ms; 4.4 in memory that is kept for all of them (AMD EPYC).
"""


@shared
def map_information(maps: Tensor) -> Tensor:
    """[image, layer, head] of [image, layer, head, query, key]: the sum over a map of p ln p; minus its entropies."""
    if _by_numpy(maps):  # block by block anyway
        return sum_x_ln_x(maps.flatten(-2))
    return torch.stack([sum_x_ln_x(layer.flatten(-2)) for layer in maps.unbind(1)], 1)


def sum_x_ln_x(x: Tensor) -> Tensor:
    """Sum over the last axis of x ln x, for x >= 0, with 0 ln 0 = 0; float64."""
    if not _by_numpy(x):
        x = _lifted(x)
        return (x * x.log()).sum(-1, dtype=torch.float64)
    vectors = x.reshape(-1, x.shape[-1])
    step = max(1, AT_ONCE // vectors.shape[-1])
    sums = [np.empty(0)]
    for part in vectors.split(step):
        log = _lifted(part).numpy()
        sums.append(_dot(part.numpy(), np.log2(log, out=log)))
    return torch.from_numpy(np.concatenate(sums)).view(x.shape[:-1]) * math.log(2)


def mixture_information(heads: Tensor) -> Tensor:
    """Sum of m ln m, m = (p + q) / 2, for every pair of heads p, q.

    Args:
        heads: [image, head, entry], not negative.

    Returns:
        [image, head, head], float64; zero on and below the diagonal.
    """
    n_images, n_heads, n_entries = heads.shape
    found = heads.new_zeros(n_images, n_heads, n_heads, dtype=torch.float64)
    if not _by_numpy(heads):
        half = _lifted(heads, 2) / 2
        for h in range(n_heads - 1):
            found[:, h, h + 1 :] = sum_x_ln_x(half[:, h, None] + half[:, h + 1 :])
        return found
    sums, p = found.numpy(), heads.numpy()
    if compiled := kernels(heads):
        compiled.mixtures(p, sums)
        return found
    # memory that is used again: fresh one for every block would take as long as the logarithms
    memory = [np.empty(min(p.size, max(BLOCK, n_entries) * n_heads), p.dtype) for _ in range(3)]
    for images, entries in _cuts(n_images, n_entries):
        block = p[images, :, entries]
        half = memory[0][: block.size].reshape(block.shape)
        np.maximum(block, 2 * np.finfo(p.dtype).tiny, out=half)  # so that its half is a normal number
        half *= 0.5
        for h in range(n_heads - 1):  # one head with all later ones
            others = half[:, h + 1 :]
            mixture, log = (space[: others.size].reshape(others.shape) for space in memory[1:])
            np.add(half[:, h, None], others, out=mixture)
            sums[images, h, h + 1 :] += _dot(mixture, np.log2(mixture, out=log))
    return found * math.log(2)


def _by_numpy(x: Tensor) -> bool:
    return x.is_cpu and x.dtype in (torch.float32, torch.float64) and not x.requires_grad


def _lifted(x: Tensor, times: int = 1) -> Tensor:
    """Zeros as the smallest normal number, where x ln x is zero for every purpose and the logarithm is finite."""
    return x.clamp_min(times * torch.finfo(x.dtype).tiny)


def _cuts(n_images: int, n_entries: int) -> Iterator[tuple[slice, slice]]:
    """Images and entries of blocks: several images of small maps, or a part of a large one, a multiple of `PART`."""
    step = max(1, BLOCK // n_entries)
    whole = n_entries // PART * PART
    ends = sorted({*range(0, whole, BLOCK), whole, n_entries})
    for start in range(0, n_images, step):
        for entries in pairwise(ends):
            yield slice(start, start + step), slice(*entries)


def _dot(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Sum over the last axis of the products, by BLAS, which takes 0.09 ns per entry and einsum 0.26; float64."""
    n = one.shape[-1] // PART * PART
    total = 0.0
    if n:
        a, b = (x[..., :n].reshape(*x.shape[:-1], -1, PART) for x in (one, other))
        total = (a[..., None, :] @ b[..., None])[..., 0, 0].astype(np.float64).sum(-1)
    if n < one.shape[-1]:
        total = total + (one[..., None, n:] @ other[..., n:, None])[..., 0, 0]
    return np.asarray(total, np.float64)
