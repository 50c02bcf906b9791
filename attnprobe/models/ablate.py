"""Ablation of maps, attention layers, blocks and heads of a model, for the duration of a context.

By forward hooks on a copy of a model of any family that can lose parts. Maps can be exchanged, and softmax maps
silenced, where attention is timm's plain one or this package's, whose copy has taps.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

import torch
from timm.layers import Attention
from torch import Tensor, nn

from attnprobe.core.errors import InputError
from attnprobe.core.evidence import Change
from attnprobe.core.outputs import relative_error
from attnprobe.models.attention import TappedAttention, replace_attention
from attnprobe.models.families import PLAIN, family_of
from attnprobe.models.fewer_heads import NoAttention
from attnprobe.models.parts import units
from attnprobe.models.same import SAME

SAME_IN_FLOAT64 = 1e-9


class Ablatable:
    """A copy of a model whose parts can be ablated.

    Attributes:
        module: the copy; equal to the model while nothing is ablated.
        tapped: whether maps can be exchanged, and softmax maps silenced.
        parts: its blocks.
        heads: number of maps in each block's effective attention.

    Raises:
        InputError: of no family that can lose parts, or like timm's vision transformer with attention that is neither
            timm's nor ours.
    """

    def __init__(self, model: nn.Module, pixels: Tensor) -> None:
        family = family_of(model)
        self.module: Any = deepcopy(model).eval()
        self.tapped = family is PLAIN
        if self.tapped:
            for number, block in enumerate(self.module.blocks, 1):
                block.attn = _tapped(block.attn, number)
        self.parts = list(family.parts(self.module))
        own = tuple(part.heads for part in self.parts)
        self.heads = self._proved_heads(model.eval(), pixels) if self.tapped else own

    @torch.inference_mode()
    def _proved_heads(self, model: nn.Module, pixels: Tensor) -> tuple[int, ...]:
        """The number of heads of each block's map; raises InputError unless copy and model agree on these images."""
        heads = [0] * len(self.parts)

        def count(number: int) -> Any:
            return lambda _m, _in, out: heads.__setitem__(number, out.shape[1])

        having = [number for number, part in enumerate(self.parts) if part.heads]
        with ExitStack() as stack:
            for number in having:
                tap = self.module.blocks[number].attn.taps["effective"]
                stack.callback(tap.register_forward_hook(count(number)).remove)
            same = _compute_the_same(self.module, model, pixels)  # while the taps are hooked, or maps are not computed
        if not same or not all(heads[number] for number in having):
            raise InputError(f"{type(model).__name__}: its maps cannot be exchanged without changing what it computes.")
        return tuple(heads)

    def refusal(self, change: Change) -> str:
        """The reason why this cannot be ablated; empty if it can."""
        n, block, head = len(self.heads), change.block, change.head
        if not 1 <= block <= n:
            return f"there is no block {block}; the model has blocks 1 to {n}."
        part, heads = self.parts[block - 1], self.heads[block - 1]
        if change.kind in ("head", "softmax") and not 1 <= head <= heads:
            return f"block {block} has no head {head}; it has heads 1 to {heads}."
        if change.kind == "head" and part.refusal and not self.tapped:
            return f"block {block}: {part.refusal}, so that none can be silenced alone."
        if change.kind in ("map", "attention") and not heads:
            return f"block {block} has no attention."
        if change.kind in ("map", "softmax") and not self.tapped:
            return f"block {block} has {type(part.attention).__name__}, whose maps cannot be exchanged."
        if change.kind == "softmax" and getattr(part.attention, "shares", False):
            return f"block {block} uses the previous block's map, so its heads have no softmax of their own."
        if change.kind == "map" and block == 1:
            return "block 1 has no previous block whose map it could use."
        if change.kind == "map" and self.heads[block - 2] != heads:
            return f"block {block} has another number of heads than the previous block."
        if change.kind == "block" and block == 1 and self.tapped and type(self.module.blocks) is not nn.Sequential:
            return "block 1 passes on what the next one needs, so it cannot be dropped."
        return ""

    def units(self, blocks: Sequence[int], *, every: bool = False) -> list[tuple[int, ...]]:
        """Groups of these blocks that can be dropped alone; see `attnprobe.models.parts.units`."""
        return units(self.parts, blocks, every=every)

    def head(self, block: int, head: int) -> Change:
        """The ablation of a head: of its softmax map where heads are mixed after the softmax, else of its output."""
        there = self.tapped and 1 <= block <= len(self.heads)
        mixes = there and getattr(self.parts[block - 1].attention, "mixes", False)
        return Change("softmax" if mixes else "head", block, head)

    def check(self, change: Change) -> None:
        """Raise InputError if this cannot be ablated."""
        if refusal := self.refusal(change):
            raise InputError(refusal)

    @contextmanager
    def without(self, changes: Sequence[Change]) -> Iterator[None]:
        """Ablate all of these at once; a run of borrowing blocks uses the map of the block before it."""
        for change in changes:
            self.check(change)
        borrowers = {change.block for change in changes if change.kind == "map"}
        with ExitStack() as stack:
            if borrowers:
                self._hand_maps_on(borrowers, stack)
            for change in changes:
                part = self.parts[change.block - 1]
                if change.kind == "attention":
                    stack.callback(part.attention.register_forward_hook(_adds_nothing).remove)
                elif change.kind == "block":
                    stack.callback(part.block.register_forward_hook(_passes_on(part.stream)).remove)
            for kind, silenced in (("head", self._silenced), ("softmax", self._unseen)):
                for number in {change.block for change in changes if change.kind == kind}:
                    lost = [c.head - 1 for c in changes if c.kind == kind and c.block == number]
                    stack.callback(silenced(number, lost).remove)
            yield

    @contextmanager
    def gated(self, gates: Sequence[Tensor]) -> Iterator[None]:
        """Multiply each block's heads by gates [image, head] before the output projection."""
        with ExitStack() as stack:
            for part, gate in zip(self.parts, gates, strict=True):
                if part.projection is not None:
                    stack.callback(part.projection.register_forward_pre_hook(_multiplied_by(gate)).remove)
            yield

    def _hand_maps_on(self, borrowers: set[int], stack: ExitStack) -> None:
        """Let borrowers use the last map of the blocks before them that are none, until the stack is left."""
        kept: dict[str, Tensor] = {}

        def keep(_m: nn.Module, _in: tuple[Tensor], out: Tensor) -> None:
            kept["map"] = out

        def use(_m: nn.Module, _in: tuple[Tensor], _out: Tensor) -> Tensor:
            return kept["map"]

        for number, block in enumerate(self.module.blocks, 1):
            hook = use if number in borrowers else keep if number + 1 in borrowers else None
            if hook is not None:
                stack.callback(block.attn.taps["effective"].register_forward_hook(hook).remove)

    def _silenced(self, number: int, lost: Sequence[int]) -> Any:
        """A hook before a block's output projection that sets heads (from 0) to 0."""
        projection: Any = self.parts[number - 1].projection
        heads = self.heads[number - 1]

        def silence(_m: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            per_head = inputs[0].unflatten(-1, (heads, -1)).clone()
            per_head[..., list(lost), :] = 0
            return (per_head.flatten(-2),)

        return projection.register_forward_pre_hook(silence)

    def _unseen(self, number: int, lost: Sequence[int]) -> Any:
        """A hook that sets softmax maps of a block (from 0) to 0, before heads are mixed."""

        def clear(_m: nn.Module, _in: tuple[Tensor], out: Tensor) -> Tensor:
            left = out.clone()
            left[:, list(lost)] = 0
            return left

        return self.module.blocks[number - 1].attn.taps["weights"].register_forward_hook(clear)


def _compute_the_same(one: nn.Module, two: nn.Module, pixels: Tensor) -> bool:
    """True if two models agree up to rounding; float64 decides where float32 amplifies it (scores in the hundreds)."""
    if relative_error(one(pixels), two(pixels)) <= SAME:
        return True
    one, two, pixels = deepcopy(one).cpu().double(), deepcopy(two).cpu().double(), pixels.cpu().double()
    return relative_error(one(pixels), two(pixels)) <= SAME_IN_FLOAT64


def _tapped(attention: Attention, number: int) -> TappedAttention:
    """The same attention with taps."""
    if isinstance(attention, TappedAttention | NoAttention):
        return attention
    if type(attention) is not Attention or getattr(attention, "gate", None) is not None:
        raise InputError(
            f"block {number} has {type(attention).__name__}, whose maps cannot be exchanged: only timm's plain "
            "Attention and this package's variants can."
        )
    tapped = replace_attention(TappedAttention, attention)
    tapped.eval()
    return tapped


def _multiplied_by(gate: Tensor) -> Any:
    """A hook that multiplies heads' outputs [image or window, token, head x P] by [image, head].

    Windows of an image follow one another.
    """

    def multiply(_m: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
        per_head = inputs[0].unflatten(-1, (gate.shape[1], -1))
        each = gate.repeat_interleave(len(per_head) // len(gate), 0)
        return ((per_head * each[:, None, :, None]).flatten(-2),)

    return multiply


def _adds_nothing(_m: nn.Module, _in: tuple[Any, ...], out: Any) -> Any:
    """A hook of an attention layer: zeros for the tokens, and whatever it passes on."""
    return (torch.zeros_like(out[0]), *out[1:]) if isinstance(out, tuple) else torch.zeros_like(out)


def _passes_on(stream: int) -> Any:
    """A hook of a block: its argument `stream`, and whatever was passed to it."""

    def pass_on(_m: nn.Module, inputs: tuple[Any, ...], out: Any) -> Any:
        return (inputs[stream], *inputs[1:]) if isinstance(out, tuple) else inputs[stream]

    return pass_on
