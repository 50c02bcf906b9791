"""Differential attention against the equation, timm's own, and the plain ViT."""

import math

import pytest
import timm.layers
import torch
from torch import nn

from attnprobe.capturing import certify, record
from attnprobe.core.errors import InputError
from attnprobe.models.variants.differential import DifferentialViT
from tests.models.remedies import (
    TINY,
    assert_is_plain,
    assert_paths_agree,
    heads_of,
    loop_scores,
    loop_softmax,
    project,
    randomised,
    tokens,
)


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
    layer, x = randomised(DifferentialViT(**TINY)).blocks[block].attn, tokens()
    for layer.fused_attn in (True, False):
        with torch.no_grad():
            share, lambda_0 = loop_share(layer, block)
            a, v = difference(loop_softmax(loop_scores(layer, x)), share), heads_of(layer, x, 2)
            pairs = torch.stack([a[:, j] @ torch.cat([v[:, 2 * j], v[:, 2 * j + 1]], -1) for j in range(2)], 1)
            rms = (pairs.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            pairs = (1 - lambda_0) * layer.norm.weight * pairs / rms
            torch.testing.assert_close(layer(x), project(layer, pairs))


@pytest.mark.skipif(not hasattr(timm.layers, "DiffAttention"), reason="this timm has no differential attention")
def test_equals_timms_with_half_the_heads():
    ours, x = randomised(DifferentialViT(**TINY)).blocks[1].attn, tokens()
    theirs = timm.layers.DiffAttention(16, num_heads=2, qkv_bias=True, depth=1).double().eval()
    state = {k.replace("norm.weight", "sub_norm.weight"): v for k, v in ours.state_dict().items()}
    theirs.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-7, atol=1e-7)  # theirs takes exp in float32


def test_fused_and_explicit_paths_agree():
    assert_paths_agree(randomised(DifferentialViT(**TINY)))


def test_with_nothing_taken_off_no_norm_and_twin_heads_it_is_the_plain_vit():
    model = DifferentialViT(**TINY)
    with torch.no_grad():
        for block in model.blocks:
            heads = block.attn.qkv.weight.view(3, 4, 4, 16)
            heads[:2, 1::2] = heads[:2, ::2]  # queries and keys; biases are 0
            block.attn.lambda_q1.zero_()
            block.attn.lambda_q2.zero_()
            block.attn.lambda_0 = 0.0
            block.attn.norm = nn.Identity()
    assert_is_plain(model, fused=(False,))


def test_capture_sees_the_first_softmax_and_the_difference():
    model, pixels = randomised(DifferentialViT(**TINY)), torch.randn(2, 3, 16, 16, dtype=torch.float64)
    inputs = []
    for block in model.blocks:
        block.attn.qkv.register_forward_pre_hook(lambda _m, args: inputs.append(args[0]))
    with torch.no_grad(), record(model, ("weights", "effective")) as recorder:
        model(pixels)
        weights, effective = recorder.take()
        for index, block in enumerate(model.blocks):
            maps = loop_softmax(loop_scores(block.attn, inputs[index]))
            share, _ = loop_share(block.attn, index)
            torch.testing.assert_close(weights.values[:, index], maps[:, ::2])
            torch.testing.assert_close(effective.values[:, index], difference(maps, share))
    proof = certify(model, pixels)
    assert proof.output_equal and all(layer.value_error < 1e-9 for layer in proof.layers)


def test_what_cannot_be_paired_or_normalised_is_refused():
    with pytest.raises(InputError, match="num_heads must be even|even, got 1"):
        DifferentialViT(**{**TINY, "num_heads": 1})
    with pytest.raises(InputError, match="leave scale_attn_norm out"):
        DifferentialViT(**TINY, scale_attn_norm=True)
