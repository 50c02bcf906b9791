"""LayerScale: every residual branch is multiplied by a learned vector that starts small.

Touvron et al. 2021, "Going deeper with Image Transformers", arXiv:2103.17239:
    x + diag(lambda) f(LN(x))
timm's own `init_values`, the start of lambda. 0.1 lets all our depths learn from the first step; pass a smaller one,
such as 1e-5, for long trainings of deep models. At 1 it is the plain ViT, bit for bit.
"""

from attnprobe.models.variant import Paper, Variant
from attnprobe.models.variants.vit import PlainViT

LAYERSCALE = Variant(
    name="layerscale",
    summary="residual branches are multiplied by a learned vector that starts at 0.1",
    paper=Paper("touvron2021going", "2103.17239", 2021),
    model=PlainViT,
    options={"init_values": 0.1},
)
