"""RealFormer against scores added up by hand."""

import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.models.variants.realformer import RealFormer, ScoreCascade
from tests.models import reference as ref


def test_a_layer_adds_the_scores_it_is_handed_and_hands_on_the_sum():
    layer, x = ref.randomised(ScoreCascade(16, num_heads=4, qkv_bias=True)), ref.tokens()
    before = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        out, handed_on = layer(x, before)
        z = ref.loop_scores(layer, x) + before
        torch.testing.assert_close(handed_on, z)
        torch.testing.assert_close(out, ref.project(layer, ref.loop_softmax(z) @ ref.heads_of(layer, x, 2)))


def test_the_maps_of_a_model_come_from_the_sum_of_all_scores_so_far():
    model, total = ref.randomised(RealFormer(**ref.TINY)), 0
    inputs, (maps,) = ref.record_with_inputs(model)
    with torch.no_grad():
        for index, block in enumerate(model.blocks):
            total = total + ref.loop_scores(block.attn, inputs[index])
            torch.testing.assert_close(maps.values[:, index], ref.loop_softmax(total))


def test_under_autocast_scores_add_up_in_float32():
    layer, x = ref.randomised(ScoreCascade(16, num_heads=4, qkv_bias=True)).float(), ref.tokens().float()
    before = 50 + torch.randn(2, 4, 5, 5)  # in bfloat16 a number of this size is off by up to 0.125
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        _, handed_on = layer(x, before)
        own = layer(x)[1]
    assert own.dtype == torch.float32 and torch.equal(handed_on, own + before)


def test_without_scores_from_before_it_is_the_plain_vit():
    model = RealFormer(**ref.TINY)
    for block in model.blocks[1:]:
        block.attn.register_forward_pre_hook(lambda _m, args: (args[0], torch.zeros_like(args[1])))
    ref.assert_is_plain(model, fused=(False,))


def test_what_would_run_blocks_alone_is_refused():
    model, pixels = RealFormer(**ref.TINY), torch.randn(1, 3, 16, 16)
    with pytest.raises(InputError, match="no attention mask"):
        model(pixels, is_causal=True)
    with pytest.raises(InputError, match="cannot run one by one"):
        model.forward_intermediates(pixels)
