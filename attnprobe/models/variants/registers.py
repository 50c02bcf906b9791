"""Registers: extra learned tokens give the model a place for global notes, which else end up on dull patches.

Darcet et al. 2024, "Vision Transformers Need Registers", arXiv:2309.16588.
timm's own `reg_tokens`: they follow the class token, have their own rows of the position table (which is what tells
them apart at the start), take part in all attention and are dropped at the output. With none it is the plain ViT.
"""

from attnprobe.models.variant import Paper, Variant
from attnprobe.models.variants.vit import PlainViT

REGISTERS = Variant(
    name="registers",
    summary="four learned tokens beside the class token",
    paper=Paper("darcet2024vision", "2309.16588", 2024),
    model=PlainViT,
    options={"reg_tokens": 4},
)
