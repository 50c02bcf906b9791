"""Differential attention against the equation, timm's own, and the plain ViT."""

import math

import pytest
import timm.layers
import torch
from torch import nn

from attnprobe.capturing import certify
from attnprobe.core.errors import InputError
from attnprobe.models.variants.differential import DifferentialViT
from tests.models import reference as ref


def loop_share(layer, block):
    """lambda and lambda_0 of the block, counted from 0."""
    dots = [
        sum(a * b for a, b in zip(q.tolist(), k.tolist(), strict=True))
        for q, k in ((layer.lambda_q1, layer.lambda_k1), (layer.lambda_q2, layer.lambda_k2))
    ]
    lambda_0 = 0.8 - 0.6 * math.exp(-0.3 * block)
    return math.exp(dots[0]) - math.exp(dots[1]) + lambda_0, lambda_0


def difference(maps, share):
    return torch.stack([maps[:, 2 * j] - share * maps[:, 2 * j + 1] for j in range(maps.shape[1] // 2)], 1)


@pytest.mark.parametrize("block", [0, 2])
def test_both_paths_equal_the_equation(block):
    layer, x = ref.randomised(DifferentialViT(**ref.TINY)).blocks[block].attn, ref.tokens()
    for layer.fused_attn in (True, False):
        with torch.no_grad():
            share, lambda_0 = loop_share(layer, block)
            a, v = difference(ref.loop_softmax(ref.loop_scores(layer, x)), share), ref.heads_of(layer, x, 2)
            pairs = torch.stack([a[:, j] @ torch.cat([v[:, 2 * j], v[:, 2 * j + 1]], -1) for j in range(2)], 1)
            rms = (pairs.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            pairs = (1 - lambda_0) * layer.norm.weight * pairs / rms
            torch.testing.assert_close(layer(x), ref.project(layer, pairs))


@pytest.mark.skipif(not hasattr(timm.layers, "DiffAttention"), reason="this timm has no differential attention")
def test_equals_timms_with_half_the_heads():
    ours, x = ref.randomised(DifferentialViT(**ref.TINY)).blocks[1].attn, ref.tokens()
    theirs = timm.layers.DiffAttention(16, num_heads=2, qkv_bias=True, depth=1).double().eval()
    state = {k.replace("norm.weight", "sub_norm.weight"): v for k, v in ours.state_dict().items()}
    theirs.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-7, atol=1e-7)  # theirs takes exp in float32


def test_fused_and_explicit_paths_agree():
    ref.assert_paths_agree(ref.randomised(DifferentialViT(**ref.TINY)))


def test_with_nothing_taken_off_no_norm_and_twin_heads_it_is_the_plain_vit():
    model = DifferentialViT(**ref.TINY)
    with torch.no_grad():
        for block in model.blocks:
            heads = block.attn.qkv.weight.view(3, 4, 4, 16)
            heads[:2, 1::2] = heads[:2, ::2]  # queries and keys; biases are 0
            block.attn.lambda_q1.zero_()
            block.attn.lambda_q2.zero_()
            block.attn.lambda_0 = 0.0
            block.attn.norm = nn.Identity()
    ref.assert_is_plain(model, fused=(False,))


def test_capture_sees_the_first_softmax_and_the_difference():
    model = ref.randomised(DifferentialViT(**ref.TINY))
    inputs, (weights, effective) = ref.record_with_inputs(model, ("weights", "effective"))
    with torch.no_grad():
        for index, block in enumerate(model.blocks):
            maps = ref.loop_softmax(ref.loop_scores(block.attn, inputs[index]))
            share, _ = loop_share(block.attn, index)
            torch.testing.assert_close(weights.values[:, index], maps[:, ::2])
            torch.testing.assert_close(effective.values[:, index], difference(maps, share))
    proof = certify(model, torch.randn(2, 3, 16, 16, dtype=torch.float64))
    assert proof.output_equal and all(layer.value_error < 1e-9 for layer in proof.layers)


def test_what_cannot_be_paired_or_normalised_is_refused():
    with pytest.raises(InputError, match="num_heads must be even|even, got 1"):
        DifferentialViT(**{**ref.TINY, "num_heads": 1})
    with pytest.raises(InputError, match="leave scale_attn_norm out"):
        DifferentialViT(**ref.TINY, scale_attn_norm=True)
