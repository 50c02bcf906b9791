"""DeepViT against loops written from the equation."""

import math

import pytest
import timm
import torch

from attnprobe.capturing import record
from attnprobe.core.errors import InputError, ShapeError
from attnprobe.models.variants.deepvit import DeepViT, ReAttention, ScaledBlock
from tests.models import reference as ref

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "num_heads": 3, "depth": 3, "mlp_ratio": 3, "num_classes": 4}


def loop_reattention(layer: ReAttention, x: torch.Tensor) -> torch.Tensor:
    """Norm(Theta^T softmax(Q K^T / sqrt(P))) V, one number at a time, in evaluation mode."""
    images, tokens, width = x.shape
    heads, p = layer.num_heads, width // layer.num_heads
    qkv = x @ layer.qkv.weight.T + layer.qkv.bias
    theta, bias, norm = layer.reatten_matrix.weight[:, :, 0, 0], layer.reatten_matrix.bias, layer.var_norm
    out = torch.zeros_like(x)
    for i in range(images):
        maps = torch.zeros(heads, tokens, tokens, dtype=x.dtype)
        for h in range(heads):
            for a in range(tokens):
                q = qkv[i, a, h * p : (h + 1) * p]
                scores = [
                    float(q @ qkv[i, b, width + h * p : width + (h + 1) * p]) / math.sqrt(p) for b in range(tokens)
                ]
                total = sum(math.exp(s) for s in scores)
                for b in range(tokens):
                    maps[h, a, b] = math.exp(scores[b]) / total
        for g in range(heads):
            mixed = sum(theta[g, h] * maps[h] for h in range(heads)) + bias[g]
            mixed = (mixed - norm.running_mean[g]) / torch.sqrt(norm.running_var[g] + norm.eps)
            mixed = (mixed * norm.weight[g] + norm.bias[g]) * layer.effective_scale
            v = qkv[i, :, 2 * width + g * p : 2 * width + (g + 1) * p]
            out[i, :, g * p : (g + 1) * p] = mixed @ v
    return out @ layer.proj.weight.T + layer.proj.bias


@pytest.mark.parametrize("transform_scale", [False, True])
def test_reattention_equals_the_equation(transform_scale):
    torch.manual_seed(0)
    layer = ReAttention(12, num_heads=3, qkv_bias=True, transform_scale=transform_scale).double().eval()
    with torch.no_grad():
        for tensor in (*layer.parameters(), layer.var_norm.running_mean):
            tensor.normal_()
        layer.var_norm.running_var.uniform_(0.5, 2)
        x = torch.randn(2, 4, 12, dtype=torch.float64)
        torch.testing.assert_close(layer(x), loop_reattention(layer, x))


def test_head_mixing_equals_the_authors_convolution_in_training_too():
    torch.manual_seed(0)
    layer = ReAttention(12, num_heads=3).double().train()
    weights = torch.randn(2, 3, 5, 5, dtype=torch.float64).softmax(-1)
    ours = layer.mix(weights)
    layer.var_norm.reset_running_stats()
    torch.testing.assert_close(ours, layer.var_norm(layer.reatten_matrix(weights)))


def test_scale_adjustment_divides_both_branches():
    torch.manual_seed(0)
    block = ScaledBlock(12, num_heads=3).double().eval()
    block.scale_adjustment = 0.5
    x = torch.randn(2, 4, 12, dtype=torch.float64)
    y = x + block.attn(block.norm1(0.5 * x)) / 0.5
    torch.testing.assert_close(block(x), y + block.mlp(block.norm2(0.5 * y)) / 0.5)


def test_only_chosen_blocks_mix_and_the_rest_is_timms_attention():
    model = DeepViT(**TINY, reattention=(2,))
    assert [isinstance(block.attn, ReAttention) for block in model.blocks] == [False, False, True]
    assert type(model.blocks[0].attn) is timm.layers.Attention


def test_listening_does_not_change_the_output():
    torch.manual_seed(0)
    model = DeepViT(**TINY, reattention=(1, 2)).eval()
    pixels = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        fused = model(pixels)
        with record(model) as recorder:
            explicit = model(pixels)
            recorder.take()
    torch.testing.assert_close(fused, explicit, rtol=1e-5, atol=1e-6)


def test_gradients_reach_theta_and_the_norm():
    model = DeepViT(**TINY)
    model(torch.randn(4, 3, 16, 16)).sum().backward()
    for block in model.blocks:
        assert block.attn.reatten_matrix.weight.grad.abs().sum() > 0
        assert block.attn.var_norm.weight.grad is not None


def test_state_names_are_the_authors():
    names = set(DeepViT(**TINY, reattention=(2,)).state_dict())
    assert {"blocks.2.attn.reatten_matrix.weight", "blocks.2.attn.var_norm.running_mean"} <= names
    assert not any("reatten" in name for name in names if name.startswith("blocks.0."))


def test_unknown_block_and_masks_are_refused():
    with pytest.raises(ShapeError, match="outside 0..2"):
        DeepViT(**TINY, reattention=(3,))
    with pytest.raises(InputError, match="no attention mask"):
        ReAttention(12, num_heads=3)(torch.randn(1, 4, 12), is_causal=True)


@pytest.mark.parametrize("reattention", [None, (), (1,)])
@pytest.mark.parametrize("fused", [False, True])
def test_qk_scale_replaces_the_root_of_the_head_width_in_every_block(reattention, fused):
    """Logits of s q k are those of q' k / sqrt(P) with q' = s sqrt(P) q."""
    scaled = ref.randomised(DeepViT(**ref.TINY, reattention=reattention, qk_scale=0.3, qkv_bias=True))
    plain = DeepViT(**ref.TINY, reattention=reattention, qkv_bias=True).double().eval()
    state = {name: value.clone() for name, value in scaled.state_dict().items()}
    for name, value in state.items():
        if ".qkv." in name:
            value[:16] *= 0.3 * 4**0.5
    plain.load_state_dict(state)
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = ref.set_fused(scaled, fused)(pixels), plain(pixels)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_qk_scale_is_the_scale_of_the_mixed_map_too():
    model = DeepViT(**ref.TINY, transform_scale=True, qk_scale=0.3, qkv_bias=False)
    assert [block.attn.effective_scale for block in model.blocks] == [0.3] * 3
    assert all(block.attn.qkv.bias is None for block in model.blocks)
