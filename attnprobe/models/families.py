"""Families of models that can lose blocks, attention branches and heads: where these are, and what is left is written.

An entry of `FAMILIES` for every kind of model of timm; `hugging_face` is that of transformers. A model with code of its
own has an object of the protocol `Family` as its attribute `family`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from timm.layers import Attention
from timm.models.beit import Beit
from timm.models.beit import Block as BeitBlock
from timm.models.cait import Cait
from timm.models.eva import Eva, EvaBlock
from timm.models.swin_transformer import SwinTransformer
from torch import nn

from attnprobe.core.errors import InputError
from attnprobe.models.features import of_transformers
from attnprobe.models.fewer_heads import NoAttention, heads_refusal
from attnprobe.models.hugging_face import HUGGING_FACE
from attnprobe.models.parts import Family, Part


@dataclass(frozen=True, slots=True)
class TimmFamily:
    """Build of the models of one of timm's classes.

    Attributes:
        fits: whether a model is one, with blocks that add the output of attention to the tokens.
        sequences: its lists of blocks, in the order they are computed.
        depth: number of blocks in each list -> options of the model.
        turn: `Part.turn` of a block.
        streams: `Part.stream` of the blocks of each list.
    """

    fits: Callable[[Any], bool]
    sequences: Callable[[Any], list[Any]]
    depth: Callable[[list[int]], dict[str, Any]]
    turn: Callable[[Any], Any] = lambda _block: None
    streams: tuple[int, ...] = (0,)

    def parts(self, model: Any) -> list[Part]:
        """The blocks of all lists."""
        shared = getattr(model, "rel_pos_bias", None) is not None or getattr(model, "rope_mixed", False)
        found = []
        for place, blocks in enumerate(self.sequences(model)):
            stream = self.streams[min(place, len(self.streams) - 1)]
            for block in blocks:
                attention, turn = block.attn, self.turn(block)
                refusal = f"heads of {type(attention).__name__} share positions" if shared else heads_refusal(attention)
                projection, heads = getattr(attention, "proj", None), attention.num_heads
                found.append(Part(block, attention, projection, heads, refusal, stream, place, turn))
        return found


def _is_plain(model: Any) -> bool:
    blocks = getattr(model, "blocks", None)
    return isinstance(blocks, nn.Sequential) and all(
        isinstance(getattr(block, "attn", None), Attention | NoAttention) for block in blocks
    )


def _has(kind: type, block: type) -> Callable[[Any], bool]:
    return lambda model: isinstance(model, kind) and all(type(part) is block for part in model.blocks)  # type: ignore


PLAIN = TimmFamily(_is_plain, lambda model: [model.blocks], lambda counts: {"depth": counts[0]})
"""timm's VisionTransformer, this package's variants of it, and whatever is built like it."""

FAMILIES: tuple[TimmFamily, ...] = (
    PLAIN,
    TimmFamily(_has(Eva, EvaBlock), lambda model: [model.blocks], lambda counts: {"depth": counts[0]}),
    TimmFamily(_has(Beit, BeitBlock), lambda model: [model.blocks], lambda counts: {"depth": counts[0]}),
    TimmFamily(
        lambda model: isinstance(model, Cait) and model.blocks_token_only is not None,
        lambda model: [model.blocks, model.blocks_token_only],
        lambda counts: {"depth": counts[0], "depth_token_only": counts[1]},
        streams=(0, 1),
    ),
    TimmFamily(
        lambda model: isinstance(model, SwinTransformer),
        lambda model: [stage.blocks for stage in model.layers],
        lambda counts: {"depths": counts},
        turn=lambda block: tuple(block.shift_size),
    ),
)


def family_of(model: Any) -> Any:
    """The family of a model: its own attribute `family`, or that of transformers or of a class of timm's.

    Raises:
        InputError: it is of none.
    """
    own = getattr(model, "family", None)
    if isinstance(own, Family):
        return own
    if of_transformers(model):
        return HUGGING_FACE
    for family in FAMILIES:
        if family.fits(model):
            return family
    raise InputError(
        f"{type(model).__name__} is not built like timm's VisionTransformer, Eva, BEiT, CaiT or Swin, like a ViT of "
        "transformers or torchvision, and has no attribute `family` (attnprobe.models.parts.Family), so its blocks "
        "cannot be removed."
    )
