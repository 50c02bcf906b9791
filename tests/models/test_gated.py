"""Gated attention against the equation, and with an open gate against the plain ViT."""

import math

import torch

from attnprobe.capturing import certify
from attnprobe.models.variants.gated import GatedAttention, GatedViT
from tests.models import reference as ref


def test_both_paths_equal_the_equation():
    layer, x = ref.randomised(GatedAttention(16, num_heads=4, qkv_bias=True)), ref.tokens()
    for layer.fused_attn in (True, False):
        with torch.no_grad():
            y = ref.loop_softmax(ref.loop_scores(layer, x)) @ ref.heads_of(layer, x, 2)
            for i in range(2):
                for h in range(4):
                    for t in range(5):
                        for c in range(4):
                            row = 4 * h + c
                            opens = float(layer.gate.weight[row] @ x[i, t] + layer.gate.bias[row])
                            y[i, h, t, c] /= 1 + math.exp(-opens)
            torch.testing.assert_close(layer(x), ref.project(layer, y))


def test_fused_and_explicit_paths_agree():
    ref.assert_paths_agree(ref.randomised(GatedViT(**ref.TINY)))


def test_with_the_gate_wide_open_it_is_the_plain_vit():
    model = GatedViT(**ref.TINY)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.gate.weight.zero_()
            block.attn.gate.bias.fill_(40)
    ref.assert_is_plain(model)


def test_without_qkv_bias_the_gate_has_none():
    assert GatedAttention(16, num_heads=4, qkv_bias=False).gate.bias is None


def test_capture_does_not_mistake_the_gate_for_another_map():
    proof = certify(ref.randomised(GatedViT(**ref.TINY)), torch.randn(2, 3, 16, 16, dtype=torch.float64))
    assert proof.output_equal and all(layer.row_sum_error < 1e-6 for layer in proof.layers)
