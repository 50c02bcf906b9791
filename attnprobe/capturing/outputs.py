"""Whatever a model returns, as the tensors in it: to compare two runs by, and to read class logits from."""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnprobe.capturing.axes import relative


def tensors_of(output: Any) -> list[Tensor]:
    """All tensors and NumPy arrays in a model's output, in its order; numbers, text, None and generators have none.

    Floating-point ones alone, where there are any: predicted classes and masks follow from them.
    """
    found = [_real(tensor) for tensor in _tensors(output)]
    floats = [tensor for tensor in found if tensor.is_floating_point()]
    return floats or [tensor.double() for tensor in found]


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference of two outputs, relative to the largest value of each tensor; 0.0 of nothing."""
    if len(ours) != len(theirs) or any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return math.inf
    return max((relative(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """Whether two outputs are the same bit for bit."""
    pairs = list(zip(ours, theirs, strict=True))
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs) and not difference(ours, theirs)


def class_logits(output: Any, n_images: int) -> Tensor | None:
    """The output's `logits`, or its first [image, class] tensor of floats; None if there is none."""
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    for tensor in _tensors(output if named is None else named):
        if tensor.ndim == 2 and len(tensor) == n_images and tensor.is_floating_point():
            return tensor
    return None


def _tensors(output: Any) -> Iterator[Tensor]:
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, np.ndarray):
        if output.dtype.kind in "fiub":
            yield torch.from_numpy(output)
    elif isinstance(output, Mapping):
        yield from _tensors(list(output.values()))
    elif isinstance(output, tuple | list):
        for item in output:
            yield from _tensors(item)
    elif dataclasses.is_dataclass(output) and not isinstance(output, type):
        yield from _tensors([getattr(output, field.name) for field in dataclasses.fields(output)])


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
