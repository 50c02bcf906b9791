"""FeatScale against the equation, and at s = t = 0 against the plain ViT."""

import torch

from attnprobe.models.variants.featscale import FeatScale, FeatScaleViT
from tests.models import reference as ref


def test_both_paths_equal_the_equation():
    layer, x = ref.randomised(FeatScale(16, num_heads=4, qkv_bias=True)), ref.tokens()
    for layer.fused_attn in (True, False):
        with torch.no_grad():
            y = ref.project(layer, ref.loop_softmax(ref.loop_scores(layer, x)) @ ref.heads_of(layer, x, 2))
            expected = torch.zeros_like(y)
            for image in range(2):
                mean = sum(y[image, t] for t in range(5)) / 5
                for t in range(5):
                    expected[image, t] = y[image, t] + layer.s * mean + layer.t * (y[image, t] - mean)
            torch.testing.assert_close(layer(x), expected)


def test_fused_and_explicit_paths_agree():
    ref.assert_paths_agree(ref.randomised(FeatScaleViT(**ref.TINY)))


def test_a_fresh_model_is_the_plain_vit():
    ref.assert_is_plain(FeatScaleViT(**ref.TINY))
