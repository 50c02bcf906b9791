"""QK-norm: queries and keys are normalised per head, so that scores cannot grow without bound.

Dehghani et al. 2023, "Scaling Vision Transformers to 22 Billion Parameters", arXiv:2302.05442:
    A = softmax(LN(Q) LN(K)^T / sqrt(P))
timm's own `qk_norm`, with its LayerNorm over the P numbers of a head. No setting of it is the plain ViT.
"""

from attnprobe.models.variant import Paper, Variant
from attnprobe.models.variants.vit import PlainViT

QKNORM = Variant(
    name="qknorm",
    summary="layer norm on the queries and keys of each head",
    paper=Paper("dehghani2023scaling", "2302.05442", 2023),
    model=PlainViT,
    options={"qk_norm": True},
)
