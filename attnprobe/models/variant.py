"""What makes a variant: one paper, as a change to the plain vision transformer."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from timm.models.vision_transformer import VisionTransformer

from attnprobe.core.tap import Site


@dataclass(frozen=True, slots=True)
class Paper:
    """Where a variant comes from: a citation key, an arXiv id and the year, "" and None if they are not known."""

    key: str
    arxiv: str
    year: int | None


@dataclass(frozen=True, slots=True)
class Variant:
    """One paper as a change to the plain ViT.

    Attributes:
        name: of the variant; `NAME_16`, `NAME_16_digits` and so on are models.
        summary: what it changes, in one line.
        model: a class that takes every argument of timm's `VisionTransformer`.
        options: the arguments that make it this variant at any geometry.
        sites: where its attention matrices differ: `("weights",)` if the softmax itself multiplies V.
    """

    name: str
    summary: str
    paper: Paper
    model: type[VisionTransformer]
    options: Mapping[str, Any] = field(default_factory=dict)
    sites: tuple[Site, ...] = ("weights",)
