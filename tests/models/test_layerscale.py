"""LayerScale is timm's, and 1 is the plain ViT."""

import torch

from attnprobe.models.variants.layerscale import LAYERSCALE
from tests.models.remedies import TINY, assert_is_plain, randomised


def test_a_scale_of_one_is_the_plain_vit():
    assert_is_plain(LAYERSCALE.model(**{**TINY, **LAYERSCALE.options, "init_values": 1.0}))


def test_both_branches_are_scaled_per_channel():
    block = randomised(LAYERSCALE.model(**TINY, **LAYERSCALE.options)).blocks[0]
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    with torch.no_grad():
        y = x + block.ls1.gamma * block.attn(block.norm1(x))
        torch.testing.assert_close(block(x), y + block.ls2.gamma * block.mlp(block.norm2(y)))
