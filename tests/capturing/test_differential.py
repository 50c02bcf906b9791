"""Differential attention, (A1 - lambda A2) V: the difference is the map of each head of one layer a block."""

import pytest
import timm
import torch
from torch import nn

import attnprobe as ap
from tests.capturing.test_layouts import PIXELS, Attention, ViT, soft


def by_equation(module, x):
    """[image, head, query, key] of a block or an attention module of timm given x [image, token, width]."""
    n, t, _ = x.shape
    heads, width = module.num_heads, module.head_dim
    if hasattr(module, "qkv"):
        q, k, _ = module.qkv(x).chunk(3, -1)
    else:  # MLP and attention of one projection
        _, q, k, _ = module.in_proj(module.in_norm(x)).split(module.in_split, -1)
    q, k = (y.reshape(n, t, 2 * heads, width).transpose(1, 2) for y in (q, k))
    q, k = module.q_norm(q), module.k_norm(k)
    dots = [(module.lambda_q1 * module.lambda_k1).sum(), (module.lambda_q2 * module.lambda_k2).sum()]
    amount = dots[0].exp() - dots[1].exp() + module.lambda_init
    maps = []
    for head in range(heads):
        first, second = (soft(q[:, i] * width**-0.5, k[:, i]) for i in (2 * head, 2 * head + 1))
        maps.append(first - amount * second)
    return torch.stack(maps, 1)


@pytest.mark.parametrize("name", ["vit_dwee_patch16_reg1_gap_256", "vit_dpwee_patch16_reg1_gap_256"])
def test_the_differential_vits_of_timm_have_a_layer_a_block(name):
    torch.manual_seed(0)
    model = timm.create_model(name, img_size=64, depth=3, num_classes=3).eval()
    for name, p in model.named_parameters():
        if "lambda" in name and p.numel():
            nn.init.normal_(p, std=0.3)
    pixels = torch.randn(3, 3, 64, 64)
    modules = [getattr(block, "attn", block) for block in model.blocks]
    assert all(module.fused_attn for module in modules)
    with torch.no_grad():
        capturing = ap.capture(model, pixels, ("weights", "effective"))
        (maps,) = capturing
        given = []
        hooks = [m.register_forward_pre_hook(lambda _m, args: given.append(args[0])) for m in modules]
        model(pixels)
        for hook in hooks:
            hook.remove()
        wanted = torch.stack([by_equation(module, x) for module, x in zip(modules, given, strict=True)], 1)
    assert maps.site == "effective" and not maps.stochastic and len(maps.layers) == 3
    torch.testing.assert_close(maps.values, wanted, rtol=0, atol=1e-6)
    assert all(module.fused_attn for module in modules), "switched back"
    assert capturing.certificate.located.places[maps.layers[0]].status == "proved"


def test_two_fused_maps_of_all_queries_with_one_v_are_heads_of_one_layer():
    def mix(s, q, k, v):
        attend = nn.functional.scaled_dot_product_attention
        return attend(q, k, v, scale=1.0) - 0.3 * attend(k, q, v, scale=1.0)

    model = ViT(lambda _: Attention(mix), depth=2).eval()
    (maps,) = ap.capture(model, PIXELS, "weights")
    assert maps.values.shape == (4, 2, 6, 17, 17)
    given = []
    hook = model.blocks[0].register_forward_pre_hook(lambda _m, args: given.append(args[0]))
    with torch.no_grad():
        model(PIXELS)
        hook.remove()
        q, k, _ = model.blocks[0].split(given[0])
        wanted = torch.cat([soft(q, k), soft(k, q)], 1)
    torch.testing.assert_close(maps.values[:, 0], wanted, rtol=0, atol=1e-6)
