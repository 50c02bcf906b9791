"""The plain vision transformer every variant is compared with: timm's, unchanged."""

from timm.models.vision_transformer import VisionTransformer

from attnprobe.models.conv_stem import ConvStemEmbed
from attnprobe.models.variant import Paper, Variant


class PlainViT(VisionTransformer):
    """timm's `VisionTransformer`, with DeepViT's convolutional stem as an option for fair controls."""

    def __init__(self, *args, conv_stem: bool = False, **kwargs) -> None:
        if conv_stem:
            kwargs["embed_layer"] = ConvStemEmbed
        super().__init__(*args, **kwargs)


VIT = Variant(
    name="vit",
    summary="plain softmax self-attention",
    paper=Paper("dosovitskiy2021image", "2010.11929", 2021),
    model=PlainViT,
)
