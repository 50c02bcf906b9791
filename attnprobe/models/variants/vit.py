"""The plain vision transformer every variant is compared with, and the variants that are options of timm's own.

LayerScale, Touvron et al. 2021, "Going deeper with Image Transformers", arXiv:2103.17239: residual branches are
multiplied by a learned vector that starts small,
    x + diag(lambda) f(LN(x))
timm's `init_values` is the start of lambda. 0.1 lets all our depths learn from the first step; pass a smaller one, such
as 1e-5, for long trainings of deep models. At 1 it is the plain ViT, bit for bit.

QK-norm, Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters", arXiv:2302.05442: queries and
keys are normalised per head, so that logits cannot grow without bound,
    A = softmax(LN(Q) LN(K)^T / sqrt(P))
timm's `qk_norm`, with its LayerNorm over the P numbers of a head. No setting of it is the plain ViT.

Registers, Darcet et al. 2024, "Vision Transformers Need Registers", arXiv:2309.16588: extra learned tokens hold global
information, which would otherwise take the place of uninformative patches. timm's `reg_tokens` follow the class token,
have their own rows of the position table (their only difference at the start), take part in all attention and are
dropped at the output. With none it is the plain ViT.
"""

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

LAYERSCALE = Variant(
    name="layerscale",
    summary="residual branches are multiplied by a learned vector that starts at 0.1",
    paper=Paper("touvron2021going", "2103.17239", 2021),
    model=PlainViT,
    options={"init_values": 0.1},
)

QKNORM = Variant(
    name="qknorm",
    summary="layer norm on the queries and keys of each head",
    paper=Paper("dehghani2023scaling", "2302.05442", 2023),
    model=PlainViT,
    options={"qk_norm": True},
)

REGISTERS = Variant(
    name="registers",
    summary="four learned tokens beside the class token",
    paper=Paper("darcet2024vision", "2309.16588", 2024),
    model=PlainViT,
    options={"reg_tokens": 4},
)
