"""AttnScale against its map written out, and at w = 0 against the plain ViT."""

import torch

from attnprobe.capturing import record
from attnprobe.models.variants.attnscale import AttnScale, AttnScaleViT
from tests.models import reference as ref


def pushed(layer, maps):
    """(1/N) 11^T + (1 + w) (A - (1/N) 11^T), one head at a time."""
    uniform = torch.full(maps.shape[-2:], 1 / maps.shape[-1], dtype=maps.dtype)
    return torch.stack([uniform + (1 + w) * (maps[:, h] - uniform) for h, w in enumerate(layer.w)], 1)


def test_both_paths_equal_the_equation():
    layer, x = ref.randomised(AttnScale(16, num_heads=4, qkv_bias=True)), ref.tokens()
    for layer.fused_attn in (True, False):
        with torch.no_grad():
            a = pushed(layer, ref.loop_softmax(ref.loop_scores(layer, x)))
            torch.testing.assert_close(layer(x), ref.project(layer, a @ ref.heads_of(layer, x, 2)))


def test_fused_and_explicit_paths_agree():
    ref.assert_paths_agree(ref.randomised(AttnScaleViT(**ref.TINY)))


def test_a_fresh_model_is_the_plain_vit():
    ref.assert_is_plain(AttnScaleViT(**ref.TINY))


def test_the_captured_map_is_the_pushed_one_and_its_rows_still_sum_to_one():
    model = ref.randomised(AttnScaleViT(**ref.TINY))
    with torch.no_grad(), record(model, ("weights", "effective")) as recorder:
        model(torch.randn(2, 3, 16, 16, dtype=torch.float64))
        weights, effective = recorder.take()
    for layer, block in enumerate(model.blocks):
        torch.testing.assert_close(effective.values[:, layer], pushed(block.attn, weights.values[:, layer]))
    torch.testing.assert_close(effective.values.sum(-1), torch.ones(2, 3, 4, 5, dtype=torch.float64))
