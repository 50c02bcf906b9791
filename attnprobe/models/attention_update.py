"""Change of the direction of tokens by the attention of each block."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from attnprobe.core.evidence import Change
from attnprobe.models.ablate import Ablatable
from attnprobe.models.parts import Part

Seen = Callable[[int, nn.Module, Tensor, Tensor], None]
"""Takes the number of a block, a module in it, the tokens the block took in, and what the module takes in."""


@torch.inference_mode()
def attention_updates(ablatable: Ablatable, pixels: Tensor) -> Tensor:
    """1 - cos(x, x + attention(x)) of each image and block, the mean over tokens.

    x is what a block takes in; x + attention(x) what its MLP branch starts from, with whatever scales the attention.

    Args:
        ablatable: a model whose blocks are known.
        pixels: [image, channel, row, col].

    Returns:
        [image, block], float64; NaN for a block without attention, or whose MLP does not start from such a sum.
    """
    having = [number for number, heads in enumerate(ablatable.heads, 1) if heads]
    takes_sum: dict[int, nn.Module] = {}

    def find(block: int, module: nn.Module, before: Tensor, given: Tensor) -> None:
        if torch.equal(before, given):
            takes_sum.setdefault(block, module)

    # Names differ between families, but where attention adds nothing the sum is x itself, to the bit.
    with ablatable.without([Change("attention", number) for number in having]), _watched(ablatable.parts, find):
        ablatable.module(pixels[:2])
    found = torch.full((len(pixels), len(ablatable.parts)), torch.nan, dtype=torch.float64, device=pixels.device)

    def compare(block: int, module: nn.Module, before: Tensor, given: Tensor) -> None:
        if module is takes_sum.get(block):
            cosine = F.cosine_similarity(before.double(), given.double(), dim=-1)
            found[:, block - 1] = 1 - cosine.flatten(1).mean(1)

    with _watched(ablatable.parts, compare):
        ablatable.module(pixels)
    return found


@contextmanager
def _watched(parts: list[Part], seen: Seen) -> Iterator[None]:
    """Call `seen` for every module that a block calls after its attention with as many numbers as tokens have."""
    tokens: dict[int, Tensor] = {}
    attended: set[int] = set()

    def begin(block: int, part: Part) -> Any:
        def hook(_m: nn.Module, inputs: tuple[Any, ...]) -> None:
            tokens[block] = inputs[part.stream]
            attended.discard(block)

        return part.block.register_forward_pre_hook(hook)

    def end(block: int, part: Part) -> Any:
        return part.attention.register_forward_hook(lambda *_: attended.add(block))

    def go_on(block: int, module: nn.Module) -> Any:
        def hook(_m: nn.Module, inputs: tuple[Any, ...]) -> None:
            given = inputs[0] if inputs else None
            before = tokens[block]
            if block in attended and isinstance(given, Tensor) and given.numel() == before.numel():
                seen(block, module, before, given.reshape(before.shape))  # Swin unfolds rows and columns of its tokens

        return module.register_forward_pre_hook(hook)

    with ExitStack() as stack:
        for block, part in enumerate(parts, 1):
            inner = {part.block, *(part.attention.modules() if part.heads else ())}
            handles = [begin(block, part), *([end(block, part)] if part.heads else ())]
            handles += [go_on(block, module) for module in part.block.modules() if module not in inner]
            for handle in handles:
                stack.callback(handle.remove)
        yield
