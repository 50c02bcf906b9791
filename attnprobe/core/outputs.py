"""Outputs of any model as the tensors in them: to compare two runs by, and to read class logits from."""

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnprobe.core.devices import in_float64
from attnprobe.core.errors import CaptureError


def tensors_of(output: Any) -> list[Tensor]:
    """All tensors and NumPy arrays in a model's output, in its order; its numbers, if there are none.

    Floating-point ones alone, where there are any: predicted classes and masks follow from them. Numbers beside
    tensors, such as an epoch or seconds, are not of the images.

    Raises:
        CaptureError: a generator, which computes its tensors after the forward pass, and only once.
    """
    leaves = list(_leaves(output, set()))
    found = [_real(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
    found = found or [torch.tensor(leaf, dtype=torch.float64) for leaf in leaves]
    floats = [tensor for tensor in found if tensor.is_floating_point()]
    return floats or [in_float64(tensor) for tensor in found]


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, relative to the largest value of `theirs`; infinite if not the same entries are finite.

    Entries that are finite in neither are left out: a network with a weight that is not a number can be captured, and
    where it computes nothing there is nothing to compare.
    """
    finite = theirs.isfinite()
    if not torch.equal(finite, ours.isfinite()):
        return math.inf
    if not finite.all():
        ours, theirs = ours[finite], theirs[finite]
    if not theirs.numel():
        return 0.0
    return ((ours - theirs).abs().max() / theirs.abs().max().clamp_min(1e-12)).item()


def difference(ours: list[Tensor], theirs: list[Tensor]) -> float:
    """The largest difference of two outputs, relative to the largest value of each tensor; 0.0 of nothing."""
    if len(ours) != len(theirs) or any(a.shape != b.shape for a, b in zip(ours, theirs, strict=True)):
        return math.inf
    return max((relative_error(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def equal(ours: list[Tensor], theirs: list[Tensor]) -> bool:
    """True if two outputs are the same bit for bit."""
    pairs = list(zip(ours, theirs, strict=True))
    return all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in pairs) and not difference(ours, theirs)


def class_logits(output: Any, n_images: int, classes: Sequence[int | None] = ()) -> Tensor | None:
    """The output's `logits`, or one of its [image, class] tensors of floats; None if there is none.

    Of named parts only those whose name ends so: others of this shape may be features, such as `pooler_output`.
    Probabilities are returned as their logarithms, whose softmax they are.

    Args:
        classes: numbers of classes that may be meant, the likeliest first; of several tensors the one of so many
            columns is taken, or else the first.
    """
    named = _named(output)
    called = [part for name, part in named.items() if name.lower().endswith("logits")]
    found = [
        tensor
        for tensor in _leaves(called if named else output, set())
        if isinstance(tensor, Tensor) and tensor.ndim == 2 and len(tensor) == n_images and tensor.is_floating_point()
    ]
    if not found:
        return None
    fitting = [tensor for n in classes for tensor in found if tensor.shape[-1] == n]
    chosen = (fitting or found)[0]
    return _logits(chosen.to_dense() if chosen.layout is not torch.strided else chosen)


def _logits(rows: Tensor) -> Tensor:
    """The same values, or the logarithms of probabilities: of rows that are all >= 0 and sum to 1.

    Decided where the tensor is: nothing waits for a device.
    """
    exact = rows.float() if rows.dtype.itemsize < 4 else rows
    off = (exact.sum(-1) - 1).abs().amax() if len(rows) else exact.new_tensor(1.0)
    are_probabilities = (off < max(1e-4, torch.finfo(rows.dtype).eps)) & (exact >= 0).all()
    logarithms = exact.clamp_min(torch.finfo(exact.dtype).tiny).log()
    return torch.where(are_probabilities, logarithms, exact)


def _named(output: Any) -> dict[str, Any]:
    """The parts of an output by their names; none of a tensor, tuple or list."""
    if isinstance(output, Mapping):
        return {str(name): part for name, part in output.items()}
    if isinstance(names := getattr(output, "_fields", None), tuple):  # a namedtuple
        return dict(zip(names, output, strict=True))
    if dataclasses.is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    plain = isinstance(output, Tensor | np.ndarray | tuple | list | nn.Module | type) or callable(output)
    return {} if plain else dict(getattr(output, "__dict__", {}))


def _leaves(output: Any, seen: set[int]) -> Iterator[Tensor | float]:
    """Tensors and numbers of an output; each object is entered once."""
    if isinstance(output, Tensor | int | float):
        yield output
    elif isinstance(output, np.ndarray | np.generic):
        if output.dtype.kind in "fiubc":
            yield torch.from_numpy(np.array(output))
    elif isinstance(output, Iterator):
        raise CaptureError(
            f"the model returns a {type(output).__name__}, whose tensors come after its forward pass, and only once; "
            "let it return them as a tuple."
        )
    elif id(output) not in seen:
        seen.add(id(output))
        parts = _named(output).values() or (output if isinstance(output, tuple | list) else ())
        for part in parts:
            yield from _leaves(part, seen)


def _real(tensor: Tensor) -> Tensor:
    """Numbers of a tensor of any layout."""
    tensor = tensor.dequantize() if tensor.is_quantized else tensor
    tensor = tensor.to_dense() if tensor.layout is not torch.strided else tensor
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
