"""Tensors made from a softmax, followed from call to call, without keeping any alive."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from attnprobe.core.errors import CaptureError

WRITES = re.compile(r"^(?!__).*(?<!_)_$|^__i(add|sub|mul|truediv|div|pow)__$|^__setitem__$")
"""Names of functions that change their first argument."""

MATRIX_PRODUCTS = {"matmul", "__matmul__", "__rmatmul__", "bmm", "linalg_matmul", "baddbmm"}
SOFTMAXES = {"softmax", "special_softmax"}
GATES = {"exp", "sigmoid", "relu", "softplus"}
"""What stands for a softmax, or is the first step of one written by hand, where it is taken of logits."""

unseen = torch._C.DisableTorchFunction
"""For our own arithmetic: no mode sees it, and no subclass of Tensor takes part."""


class untraced(TorchFunctionMode):
    """A mode that traces nothing. In any mode PyTorch's own modules leave their fused inference kernels, so this is
    what to compare a traced run with, bit for bit."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@dataclass(frozen=True, slots=True)
class Trail:
    """The origin of a tensor in a softmax.

    Attributes:
        number: of the softmax; the larger one came later.
        axis, n_keys: what it ran over, counted from the end, and its length.
        weights: its result; None where the tensor itself is that, so that no map outlives its use in the model.
        scores: its logits; None unless asked for.
        several: the tensor was made from other softmaxes, too.
    """

    number: int
    axis: int
    n_keys: int
    weights: Tensor | None
    scores: Tensor | None
    several: bool = False
    by_hand: bool = False

    def is_cut(self, maps: Tensor) -> bool:
        """True if a map has lost the columns of a sink, which is in no V: it is cut at its last axis."""
        return self.axis == -1 and self.weights is not None and 0 < self.n_keys - maps.shape[-1] <= MOST_SINKS


MOST_SINKS = 8
"""Columns of a softmax that may be cut off before the product with V."""

KEEPS_LOGITS = re.compile(
    r"^_*(r?mul|r?(true)?div|r?add|r?sub|i?add|imul|masked_fill|where|view|reshape|permute|transpose|flatten|unflatten|"
    r"squeeze|unsqueeze|contiguous|float|to|type|tanh|log_softmax|clamp|amax|max|neg)_*$"
)
"""Functions of logits whose results are logits."""


class Trails:
    """Tensors made from softmaxes; entries go when their tensor does.

    Args:
        fixed: parameters and buffers; what is made of a map and of them alone (mixed heads, for instance) stays on the
            trail.
    """

    def __init__(self, fixed: Iterable[Tensor] = ()) -> None:
        self._trails: WeakIdKeyDictionary = WeakIdKeyDictionary()
        # Sharded parameters are whole, and then parameters in memory of their own, while their module runs.
        whole = (t for t in fixed if not hasattr(t, "to_local"))
        self._fixed = {memory_of(t) for t in whole}
        self._n_softmaxes = 0
        self._logits: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __bool__(self) -> bool:
        return len(self._trails) > 0

    def get(self, tensor: Tensor) -> Trail | None:
        return self._trails.get(tensor)

    def note_logits(self, name: str, args: Any, result: Any, is_product: bool) -> None:
        """Remember products of two activations, and what is made of them entry by entry, as possible logits.

        Args:
            is_product: it is such a product.
        """
        if not isinstance(result, Tensor) or result.ndim < 3:
            return
        if is_product or (self._logits and KEEPS_LOGITS.match(name) and self.are_logits(args)):
            self._logits[result] = True

    def of_activations(self, args: Any) -> bool:
        """True if there are several tensors, and none is a parameter or buffer."""
        given = list(tensors(args))
        return len(given) > 1 and not any(map(self.is_fixed, given))

    def are_logits(self, args: Any) -> bool:
        """True if one of the arguments may be logits."""
        return bool(self._logits) and any(tensor in self._logits for tensor in tensors(args))

    def begin(self, result: Tensor, dim: Any, scores: Tensor | None = None, *, by_hand: bool = False) -> None:
        """`result` is a softmax over `dim`, of `scores` if they are to be kept. One over [image, class] is no map."""
        if isinstance(dim, int) and result.ndim > 2:
            self._n_softmaxes += 1
            axis = dim - result.ndim if dim >= 0 else dim
            self._trails[result] = Trail(self._n_softmaxes, axis, result.shape[axis], None, scores, by_hand=by_hand)

    @property
    def n_softmaxes(self) -> int:
        """The number of softmaxes so far."""
        return self._n_softmaxes

    def are_maps(self, operands: Iterable[Tensor], earlier: int) -> bool:
        """True if all are made of softmaxes that came after so many earlier ones, as both factors of (A A) V."""
        trails = [self.get(tensor) for tensor in operands]
        return all(trail is not None and trail.number > earlier for trail in trails)

    def begin_product(self, result: Tensor) -> None:
        """`result` is a product of maps, and a map again, of several softmaxes."""
        self._n_softmaxes += 1
        self._trails[result] = Trail(self._n_softmaxes, -1, result.shape[-1], result, None, several=True)

    def among(self, args: Any) -> list[tuple[Tensor, Trail]]:
        """Arguments made from a softmax, those of the latest first."""
        found = ((tensor, self._trails.get(tensor)) for tensor in tensors(args))
        return sorted(((t, trail) for t, trail in found if trail is not None), key=lambda pair: -pair[1].number)

    def before_write(self, written: Tensor) -> None:
        """A tensor is about to be overwritten: keep the softmax or the scores it may share memory with."""
        for tensor, trail in list(self._trails.items()):
            weights = tensor if trail.weights is None else trail.weights
            if same_storage(weights, written):
                with unseen():
                    self._trails[tensor] = trail = replace(trail, weights=weights.clone())
            if trail.scores is not None and same_storage(trail.scores, written):
                with unseen():
                    self._trails[tensor] = replace(trail, scores=trail.scores.clone())

    def follow(self, found: list[tuple[Tensor, Trail]], args: Any, result: Any) -> None:
        """Results of the size of the map, or made of it and parameters alone, are on its trail."""
        several = len({trail.number for _, trail in found}) > 1
        given = list(tensors(args))
        for made in tensors(result):
            for tensor, trail in found:  # the latest first: the map of this layer, where an earlier one is mixed in
                mixed = all(other is tensor or self.is_fixed(other) for other in given)
                if made is tensor or not made.is_floating_point() or not (mixed or made.numel() == tensor.numel()):
                    continue
                trail = replace(trail, several=True) if several else trail
                self._trails[made] = trail if trail.weights is not None else replace(trail, weights=tensor)
                break

    def is_fixed(self, tensor: Tensor) -> bool:
        """True if a tensor is a parameter or buffer of the model, or a view of one."""
        return isinstance(tensor, nn.Parameter) or memory_of(tensor) in self._fixed


def tensors(tree: Any) -> Iterator[Tensor]:
    """All tensors in nested arguments."""
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, tuple | list):
        for item in tree:
            yield from tensors(item)
    elif isinstance(tree, dict):
        yield from tensors(tuple(tree.values()))


def memory_of(tensor: Tensor) -> int:
    """The address of a tensor's memory, which its views share; of a sparse tensor, which has several, its own id.

    Raises:
        CaptureError: it has none, as inside `torch.func.vmap`.
    """
    if tensor.layout is not torch.strided:
        return id(tensor)
    try:
        return tensor.untyped_storage().data_ptr()
    except NotImplementedError:  # a tensor that a transform of functions stands in for
        raise CaptureError(
            "the model computes attention inside torch.func.vmap or another transform of functions, where tensors "
            "cannot be followed; write it for a batch of images."
        ) from None


def same_storage(a: Tensor, b: Tensor) -> bool:
    """True if two tensors share their memory."""
    return memory_of(a) == memory_of(b)
