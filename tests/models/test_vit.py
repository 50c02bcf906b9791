"""LayerScale, QK-norm and registers, options of timm's, against their equations and the plain ViT."""

import torch

from attnprobe.capturing import record
from attnprobe.models.variants.vit import LAYERSCALE, QKNORM, REGISTERS
from tests.models import reference as ref


def test_layerscale_of_one_is_the_plain_vit():
    ref.assert_is_plain(LAYERSCALE.model(**{**ref.TINY, **LAYERSCALE.options, "init_values": 1.0}))


def test_layerscale_scales_both_branches_per_channel():
    block = ref.randomised(LAYERSCALE.model(**ref.TINY, **LAYERSCALE.options)).blocks[0]
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    with torch.no_grad():
        y = x + block.ls1.gamma * block.attn(block.norm1(x))
        torch.testing.assert_close(block(x), y + block.ls2.gamma * block.mlp(block.norm2(y)))


def loop_norm(norm, x):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def test_both_paths_of_qk_norm_equal_the_equation():
    layer, x = ref.randomised(QKNORM.model(**ref.TINY, **QKNORM.options)).blocks[0].attn, ref.tokens()
    for layer.fused_attn in (True, False):
        with torch.no_grad():
            q, k = (
                loop_norm(layer.q_norm, ref.heads_of(layer, x, 0)),
                loop_norm(layer.k_norm, ref.heads_of(layer, x, 1)),
            )
            a = ref.loop_softmax(q @ k.mT / layer.head_dim**0.5)
            torch.testing.assert_close(layer(x), ref.project(layer, a @ ref.heads_of(layer, x, 2)))


def test_fused_and_explicit_paths_of_qk_norm_agree():
    ref.assert_paths_agree(ref.randomised(QKNORM.model(**ref.TINY, **QKNORM.options)))


def test_scores_of_qk_norm_do_not_grow_with_queries_and_keys():
    layer, x = ref.randomised(QKNORM.model(**ref.TINY, **QKNORM.options)).blocks[0].attn, ref.tokens()
    with torch.no_grad():
        before = layer(x)
        layer.qkv.weight[:32] *= 1000
        layer.qkv.bias[:32] *= 1000
        torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-4)  # up to the norm's eps


def test_without_registers_it_is_the_plain_vit():
    ref.assert_is_plain(REGISTERS.model(**{**ref.TINY, **REGISTERS.options, "reg_tokens": 0}))


def test_capture_names_the_registers_and_every_token_attends_to_them():
    model = REGISTERS.model(**ref.TINY, **REGISTERS.options).eval()
    with torch.no_grad(), record(model) as recorder:
        model(torch.randn(2, 3, 16, 16))
        (maps,) = recorder.take()
    assert maps.grid.prefix == ("cls", "reg0", "reg1", "reg2", "reg3")
    assert maps.values.shape == (2, 3, 4, 9, 9) and (maps.values[..., 1:5] > 0).all()


def test_registers_start_apart_from_each_other():
    model = REGISTERS.model(**ref.TINY, **REGISTERS.options)
    start = (model.reg_token + model.pos_embed[:, 1:5])[0]
    assert torch.pdist(start).min() > 0.01
