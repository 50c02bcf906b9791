"""Comparison of two models by what they compute on noise."""

from copy import deepcopy

import torch
from torch import nn

from attnprobe.core.outputs import difference, tensors_of
from attnprobe.models.build import input_spec

SAME = 1e-4
"""Tolerance between outputs of the rebuilt and of the cut model, relative to the largest."""


@torch.inference_mode()
def compute_alike(one: nn.Module, other: nn.Module) -> bool:
    """True if all tensors that two models return agree on noise, which involves every weight."""
    spec = input_spec(one)
    images = torch.randn(2, len(spec.mean), *spec.size, generator=torch.Generator().manual_seed(0))
    one, other = (deepcopy(model).cpu().float().eval() for model in (one, other))
    expected, found = tensors_of(one(images)), tensors_of(other(images))
    return bool(expected) and difference(found, expected) <= SAME
