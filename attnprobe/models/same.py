"""Comparison of two models by what they compute on noise."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from attnprobe.models.build import input_spec

SAME = 1e-4
"""Tolerance between outputs of the rebuilt and of the cut model, relative to the largest."""


@torch.inference_mode()
def compute_alike(one: nn.Module, other: nn.Module) -> bool:
    """True if all tensors that two models return agree on noise, which involves every weight."""
    spec = input_spec(one)
    images = torch.randn(2, len(spec.mean), *spec.size, generator=torch.Generator().manual_seed(0))
    one, other = (deepcopy(model).cpu().float().eval() for model in (one, other))
    pairs = list(zip(_tensors(one(images)), _tensors(other(images)), strict=False))
    return bool(pairs) and all(
        a.shape == b.shape and bool((a - b).abs().max() <= SAME * a.abs().max().clamp_min(1e-30)) for a, b in pairs
    )


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, Mapping | tuple | list):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)
