"""What makes a variant: one paper, as a change to the plain vision transformer."""

from dataclasses import dataclass

from timm.models.vision_transformer import VisionTransformer


@dataclass(frozen=True, slots=True)
class Paper:
    """Where a variant comes from: a citation key and an arXiv id."""

    key: str
    arxiv: str


@dataclass(frozen=True, slots=True)
class Variant:
    """One paper as a change to the plain ViT; `model` takes every argument of timm's `VisionTransformer`."""

    name: str
    summary: str
    paper: Paper
    model: type[VisionTransformer]
