"""What the hooks deliver is what the model computes, and they leave no trace."""

import gc

import pytest
import timm
import torch
from torch import nn

from attnprobe.capturing import capture, certify, find_layers, record
from attnprobe.capturing.stages import BufferPool
from attnprobe.core.errors import CaptureError
from attnprobe.models import build_model

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "num_heads": 3, "depth": 3, "num_classes": 4}


def plain(**options):
    return build_model("vit_16_digits", seed=0, **{**TINY, **options}).eval()


def deep(**options):
    return build_model("deepvit_16_digits", seed=0, **{**TINY, **options}).eval()


def forward_by_hand(model, pixels):
    """Maps of a plain timm ViT from its weights, without its attention module's forward."""
    x = model.norm_pre(model._pos_embed(model.patch_embed(pixels)))
    maps, outputs = [], []
    for block in model.blocks:
        attn = block.attn
        q, k, v = attn.qkv(block.norm1(x)).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = torch.exp(q @ k.mT * attn.scale)
        weights = weights / weights.sum(-1, keepdim=True)
        x = x + block.ls1(attn.proj((weights @ v).transpose(1, 2).flatten(2)))
        x = x + block.ls2(block.mlp(block.norm2(x)))
        maps.append(weights)
        outputs.append(x)
    return torch.stack(maps, 1), torch.stack(outputs, 1)


@pytest.mark.parametrize(
    "model",
    [
        plain(),
        timm.create_model("vit_tiny_patch16_224", img_size=(32, 48), depth=2, num_classes=3).eval(),
        timm.create_model("vit_small_patch16_224", img_size=32, depth=2, reg_tokens=2, num_classes=3).eval(),
        timm.create_model(
            "vit_tiny_patch16_224", img_size=32, depth=2, class_token=False, global_pool="avg", init_values=0.1
        ).eval(),
    ],
    ids=["plain", "rectangular", "registers", "no class token"],
)
def test_maps_and_tokens_of_a_timm_vit_equal_the_formula(model):
    torch.manual_seed(0)
    pixels = torch.randn(2, 3, *model.patch_embed.img_size)
    with torch.no_grad(), record(model, ("weights", "effective"), tokens=True) as recorder:
        model(pixels)
        (maps,) = recorder.take()
        expected, outputs = forward_by_hand(model, pixels)
    torch.testing.assert_close(maps.values, expected)
    torch.testing.assert_close(maps.tokens, outputs)
    assert maps.site == "weights" and maps.is_effective and maps.stochastic
    assert maps.grid.n_tokens == expected.shape[-1]


def test_prefix_tokens_are_named():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, reg_tokens=2)
    with torch.no_grad(), record(model.eval()) as recorder:
        model(torch.randn(1, 3, 32, 32))
        grid = recorder.take()[0].grid
    assert (grid.prefix, grid.rows, grid.cols, grid.patch) == (("cls", "reg0", "reg1"), 2, 2, (16, 16))


def test_a_variant_delivers_both_sites_and_mixed_depths_fill_in_the_plain_blocks():
    model = deep(reattention=(1, 2))
    with torch.no_grad(), record(model, ("weights", "effective")) as recorder:
        model(torch.randn(2, 3, 16, 16))
        weights, effective = recorder.take()
    assert (weights.site, weights.is_effective, weights.stochastic) == ("weights", False, True)
    assert (effective.site, effective.is_effective, effective.stochastic) == ("effective", True, False)
    assert torch.equal(weights.values[:, 0], effective.values[:, 0])
    mixed = model.blocks[1].attn.mix(weights.values[:, 1])
    torch.testing.assert_close(effective.values[:, 1], mixed)
    with torch.no_grad(), record(model, "effective") as recorder:
        model(torch.randn(2, 3, 16, 16))
        (only,) = recorder.take()
    assert only.site == "effective"


def test_switches_and_hooks_are_gone_also_after_an_exception():
    model = plain()
    before = [block.attn.fused_attn for block in model.blocks]
    with pytest.raises(RuntimeError, match="mine"), record(model, tokens=True):
        assert not any(block.attn.fused_attn for block in model.blocks)
        raise RuntimeError("mine")
    assert [block.attn.fused_attn for block in model.blocks] == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_never_an_empty_result():
    model = plain()
    with record(model) as recorder:
        with pytest.raises(CaptureError, match="3 of 3 attention layers never fired: blocks.0.attn"):
            recorder.take()
        model(torch.randn(1, 3, 16, 16))
        with pytest.raises(CaptureError, match="ran twice"):
            model(torch.randn(1, 3, 16, 16))
    with pytest.raises(CaptureError, match="no attention layer"):
        find_layers(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="sites"), record(model, "everything"):
        pass


def test_taken_maps_stay_as_they_were_when_the_next_batch_runs():
    model = plain()
    with torch.no_grad(), record(model) as recorder:
        model(torch.randn(2, 3, 16, 16))
        first = recorder.take()[0].values
        kept = first.clone()
        part = first[0]
        del first
        model(torch.randn(2, 3, 16, 16))
        recorder.take()
    assert torch.equal(part, kept[0])


def test_memory_is_reused_only_when_nobody_holds_it():
    pool, cpu = BufferPool(), torch.device("cpu")
    one = pool.empty((4, 5), torch.float32, cpu)
    address, view = one.data_ptr(), one[1:, ::2]
    del one
    gc.collect()
    two = pool.empty((4, 5), torch.float32, cpu)
    assert two.data_ptr() != address, "a view was still alive"
    del view
    gc.collect()
    assert pool.empty((3, 5), torch.float32, cpu).data_ptr() == address


def test_compiled_and_parallel_wrappers_are_looked_into():
    model = plain()
    pixels = torch.randn(1, 3, 16, 16)
    wrapped = torch.compile(model)
    with torch.no_grad(), record(wrapped) as recorder:
        wrapped(pixels)
        (maps,) = recorder.take()
    with torch.no_grad(), record(model) as recorder:
        model(pixels)
        assert torch.equal(recorder.take()[0].values, maps.values)


class Doubling(nn.Module):
    """An attention layer whose output is not A V: what a missed change after the softmax looks like."""

    def __init__(self, attn):
        super().__init__()
        self.__dict__.update(attn.__dict__)

    def forward(self, x, attn_mask=None, is_causal=False):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        weights = self.attn_drop((q @ k.mT * self.scale).softmax(-1))
        return self.proj(((weights + weights.flip(-1)) @ v).transpose(1, 2).flatten(2))


def test_the_certificate_passes_the_model_and_catches_a_layer_that_computes_something_else():
    pixels = torch.randn(2, 3, 16, 16)
    proof = certify(deep(), pixels)
    assert proof.output_equal and len(proof.layers) == 3
    assert all(layer.value_error < 1e-5 and layer.row_sum_error < 1e-5 for layer in proof.layers)
    model = plain()
    model.blocks[1].attn = Doubling(model.blocks[1].attn)
    with pytest.raises(CaptureError, match="blocks.1.attn: the captured map times V is off"):
        certify(model, pixels)


def sharp(scale):
    """Rows are nearly one-hot: scores are so large that rounding decides between near ties, and layers amplify it."""
    model = build_model("vit_16_digits", seed=0, img_size=32, patch_size=4, num_classes=3)
    for block in model.blocks:
        block.attn.qkv.weight.data[: 2 * model.embed_dim] *= scale
    return model


def test_rounding_that_large_scores_amplify_is_told_from_another_function():
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    model = sharp(40.0)
    proof = certify(model, pixels)
    assert proof.fused_difference > 1e-4, "so much that the tolerance alone would refuse it"
    assert next(model.parameters()).dtype == torch.float32

    class OtherwiseFused(type(model.blocks[3].attn)):
        def forward(self, *args, **options):
            return super().forward(*args, **options) * (1.001 if self.fused_attn else 1)

    model.blocks[3].attn.__class__ = OtherwiseFused
    with pytest.raises(CaptureError, match="with an explicit softmax is off by"):
        certify(model, pixels)


def test_a_model_with_randomness_is_not_certified():
    model = plain(proj_drop_rate=0.5).train()
    with pytest.raises(CaptureError, match="eval mode"):
        certify(model, torch.randn(2, 3, 16, 16))


def test_capture_gives_every_image_once_and_restores_the_mode():
    model = deep().train()
    pixels = torch.randn(5, 3, 16, 16)
    taken = capture(model, pixels, ("weights", "effective"), tokens=True, batch_size=2)
    weights = [maps for maps in taken if maps.site == "weights"]
    assert [i for maps in weights for i in maps.image_ids] == ["0", "1", "2", "3", "4"]
    assert model.training and model.blocks[0].attn.var_norm.training
    whole = next(iter(capture(model, pixels, "weights", batch_size=5)))
    torch.testing.assert_close(torch.cat([maps.values for maps in weights]), whole.values)
    assert whole.outcome.prediction.shape == (5,)
    assert taken.certificate.to_dict()["n_images"] == 2


def test_no_image_is_an_error():
    with pytest.raises(CaptureError, match="no image"):
        list(capture(plain(), torch.empty(0, 3, 16, 16)))


def test_float64_models_are_captured_in_float64():
    maps = next(iter(capture(plain().double(), torch.randn(1, 3, 16, 16, dtype=torch.float64))))
    assert maps.values.dtype == torch.float64
