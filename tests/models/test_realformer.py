"""RealFormer against scores added up by hand."""

import pytest
import torch

from attnprobe.capturing import certify, record
from attnprobe.core.errors import InputError
from attnprobe.models.variants.realformer import RealFormer, ScoreCascade
from tests.models.remedies import (
    TINY,
    assert_is_plain,
    heads_of,
    loop_scores,
    loop_softmax,
    project,
    randomised,
    tokens,
)


def test_a_layer_adds_the_scores_it_is_handed_and_hands_on_the_sum():
    layer, x = randomised(ScoreCascade(16, num_heads=4, qkv_bias=True)), tokens()
    before = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        out, handed_on = layer(x, before)
        z = loop_scores(layer, x) + before
        torch.testing.assert_close(handed_on, z)
        torch.testing.assert_close(out, project(layer, loop_softmax(z) @ heads_of(layer, x, 2)))


def test_the_maps_of_a_model_come_from_the_sum_of_all_scores_so_far():
    model, pixels = randomised(RealFormer(**TINY)), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    inputs = []
    for block in model.blocks:
        block.attn.qkv.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
    with torch.no_grad(), record(model) as recorder:
        model(pixels)
        (maps,) = recorder.take()
        total = 0
        for index, block in enumerate(model.blocks):
            total = total + loop_scores(block.attn, inputs[index])
            torch.testing.assert_close(maps.values[:, index], loop_softmax(total))
    assert certify(model, pixels).output_equal


def test_without_scores_from_before_it_is_the_plain_vit():
    model = RealFormer(**TINY)
    for block in model.blocks[1:]:
        block.attn.register_forward_pre_hook(lambda _m, args: (args[0], torch.zeros_like(args[1])))
    assert_is_plain(model, fused=(False,))


def test_what_would_run_blocks_alone_is_refused():
    model, pixels = RealFormer(**TINY), torch.randn(1, 3, 16, 16)
    with pytest.raises(InputError, match="no attention mask"):
        model(pixels, is_causal=True)
    with pytest.raises(InputError, match="cannot run one by one"):
        model.forward_intermediates(pixels)
