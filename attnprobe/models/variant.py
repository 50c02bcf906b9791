"""A variant: one paper, as a change to the plain vision transformer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from timm.models.vision_transformer import VisionTransformer

from attnprobe.core.sites import Site
from attnprobe.models.attention import TappedAttention, replace_attention


@dataclass(frozen=True, slots=True)
class Paper:
    """A variant's source: citation key, arXiv id ("" if none) and year (None if unknown)."""

    key: str
    arxiv: str
    year: int | None


@dataclass(frozen=True, slots=True)
class Variant:
    """One paper as a change to the plain ViT.

    Attributes:
        name: of the variant; `NAME_16`, `NAME_16_digits` and so on are models.
        summary: the change, in one line.
        model: a class that takes every argument of timm's `VisionTransformer`.
        options: the arguments that make it this variant at any geometry.
        sites: where its attention matrices differ: `("weights",)` if the softmax itself is multiplied with V.
    """

    name: str
    summary: str
    paper: Paper
    model: type[VisionTransformer]
    options: Mapping[str, Any] = field(default_factory=dict)
    sites: tuple[Site, ...] = ("weights",)


class AttentionViT(VisionTransformer):
    """A ViT with another attention in every block, named by a subclass; arguments as timm's `VisionTransformer`."""

    attention: ClassVar[type[TappedAttention]]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        block: Any
        for block in self.blocks:
            block.attn = replace_attention(self.attention, block.attn)
