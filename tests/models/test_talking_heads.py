"""Talking heads against loops written from the equation, and at the identity against the plain ViT."""

import torch

from attnprobe.capturing import record
from attnprobe.models.variants.talking_heads import TalkingHeads, TalkingHeadsViT
from tests.models import reference as ref


def loop_mix(matrix, maps):
    mixed = torch.zeros_like(maps)
    for i, h, a, b in ref.all_indices(maps):
        mixed[i, h, a, b] = sum(matrix[h, g] * maps[i, g, a, b] for g in range(maps.shape[1]))
    return mixed


def test_equals_the_equation():
    layer, x = ref.randomised(TalkingHeads(16, num_heads=4, qkv_bias=True)), ref.tokens()
    with torch.no_grad():
        a = loop_mix(layer.mix_weights, ref.loop_softmax(loop_mix(layer.mix_scores, ref.loop_scores(layer, x))))
        torch.testing.assert_close(layer(x), ref.project(layer, a @ ref.heads_of(layer, x, 2)))


def test_a_fresh_model_is_the_plain_vit():
    ref.assert_is_plain(TalkingHeadsViT(**ref.TINY), fused=(False,))


def test_heads_mixed_after_the_softmax_are_seen_apart_from_the_softmax():
    model = ref.randomised(TalkingHeadsViT(**ref.TINY))
    with torch.no_grad(), record(model, ("weights", "effective")) as recorder:
        model(torch.randn(2, 3, 16, 16, dtype=torch.float64))
        weights, effective = recorder.take()
    torch.testing.assert_close(weights.values.sum(-1), torch.ones(2, 3, 4, 5, dtype=torch.float64))
    for layer, block in enumerate(model.blocks):
        torch.testing.assert_close(
            effective.values[:, layer], loop_mix(block.attn.mix_weights, weights.values[:, layer])
        )
