"""Refiner against the plain sequence of convolutions and norms it stands for."""

import pytest
import torch
import torch.nn.functional as F

from attnprobe.capturing import certify, record
from attnprobe.core.errors import InputError, ShapeError
from attnprobe.models.variants.refiner import DLA, Refiner
from tests.models import reference as ref

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 12, "num_heads": 3, "depth": 4, "mlp_ratio": 3, "num_classes": 4}
ALTERNATE = (False, True, False, True)


def randomised(model):
    """No norm, scale or bias left at 0 or 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5) if "running_var" in name else tensor.normal_(0, 0.5)
    return model.double().eval()


def plain_convolutions(dla, maps):
    """The refinement as convolutions on materialised maps, one after the other."""

    def norm(bn, x):
        return F.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)

    y = F.relu6(norm(dla.bn1, F.conv2d(maps, dla.conv_exp.weight))) if dla.expands else maps
    y = F.relu6(norm(dla.bn2, F.conv2d(y, dla.depth_sep_conv.weight, padding=1, groups=y.shape[1])))
    return maps + norm(dla.bn3, F.conv2d(y, dla.conv_pro.weight))


@pytest.mark.parametrize("expand", [1, 2, 3])
def test_refinement_equals_its_convolutions(expand):
    dla = randomised(DLA(3, expand))
    maps = torch.rand(2, 3, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(dla(maps), plain_convolutions(dla, maps))


def test_sharing_blocks_use_the_refined_map_and_hand_on_the_unrefined_one():
    model = randomised(Refiner(**TINY, share=ALTERNATE))
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad(), record(model, ("weights", "effective"), tokens=True) as recorder:
        model(pixels)
        weights, effective = recorder.take()
    a, w, scale = effective.values, weights.values, model.blocks[0].attn.scale
    torch.testing.assert_close(a[:, 0], w[:, 0])
    shared = model.blocks[1].attn
    with torch.no_grad():
        torch.testing.assert_close(a[:, 1], shared.adapt_bn(plain_convolutions(shared.DLA, a[:, 0])) * scale)
    torch.testing.assert_close(a[:, 2], w[:, 2] + scale * a[:, 0])
    assert torch.equal(w[:, 1], w[:, 0]), "a sharing block shows the softmax it derives its map from"
    assert effective.tokens.shape == (2, 4, 17, 12) and not effective.stochastic


def test_what_is_captured_is_what_multiplies_the_values():
    proof = certify(randomised(Refiner(**TINY, share=ALTERNATE)), torch.randn(2, 3, 16, 16, dtype=torch.float64))
    assert proof.output_equal and all(layer.value_error < 1e-9 for layer in proof.layers)


def test_the_dense_head_adds_half_of_its_maximum_over_patches():
    model = randomised(Refiner(**TINY, dense=True))
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        tokens = model.forward_features(pixels)
        expected = model.head(tokens[:, 0]) + 0.5 * model.aux_head(tokens[:, 1:]).amax(1)
        torch.testing.assert_close(model(pixels), expected)


def test_mix_token_swaps_the_box_and_swaps_the_patch_labels_back():
    model = Refiner(**TINY, dense=True, mix_token=True).train()
    patches = torch.arange(2.0).view(2, 1, 1).expand(2, 16, 1)
    mixed = model._swapped(patches, (1, 0, 3, 2)).unflatten(1, (4, 4))[..., 0]
    inside = torch.zeros(4, 4, dtype=torch.bool)
    inside[1:3, 0:2] = True
    assert (mixed[0][inside] == 1).all() and (mixed[0][~inside] == 0).all()
    torch.testing.assert_close(model._swapped(model._swapped(patches, (1, 0, 3, 2)), (1, 0, 3, 2)), patches)
    logits, patch_logits, box = model(torch.randn(2, 3, 16, 16))
    assert logits.shape == (2, 4) and patch_logits.shape == (2, 16, 4) and len(box) == 4


def test_boxes_lie_on_the_grid():
    model = Refiner(**TINY)
    torch.manual_seed(0)
    for _ in range(200):
        row0, col0, row1, col1 = model._box()
        assert 0 <= row0 <= row1 <= 4 and 0 <= col0 <= col1 <= 4


def test_gradient_checkpointing_changes_nothing():
    model = Refiner(**TINY, share=ALTERNATE).double().train()
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    state = {k: v.clone() for k, v in model.state_dict().items()}
    model(pixels).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.load_state_dict(state)
    model.zero_grad()
    model.set_grad_checkpointing()
    model(pixels).sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.grad, expected[name])


def test_options_the_method_does_not_allow_say_why():
    with pytest.raises(InputError, match="first block cannot share"):
        Refiner(**TINY, share=(True, False, False, False))
    with pytest.raises(InputError, match="mix_token needs the dense head"):
        Refiner(**TINY, mix_token=True)
    with pytest.raises(ShapeError, match="one entry per block"):
        Refiner(**TINY, share=(False, True))


def test_qk_scale_replaces_the_root_of_the_head_width_wherever_it_is_used():
    """Logits of s q k are those of q' k / sqrt(P) with q' = s sqrt(P) q; a shared map is multiplied by s."""
    scaled = ref.randomised(Refiner(**{**ref.TINY, "depth": 1}, refine=(True,), qk_scale=0.3, qkv_bias=True))
    plain = Refiner(**{**ref.TINY, "depth": 1}, refine=(True,), qkv_bias=True).double().eval()
    state = {name: value.clone() for name, value in scaled.state_dict().items()}
    for name, value in state.items():
        if ".qkv." in name:
            value[:16] *= 0.3 * 4**0.5
    plain.load_state_dict(state)
    pixels = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(scaled(pixels), plain(pixels), rtol=1e-10, atol=1e-10)
    shared = Refiner(**{**ref.TINY, "depth": 2}, share=(False, True), qk_scale=0.3, qkv_bias=False)
    assert [block.attn.scale for block in shared.blocks] == [0.3, 0.3]
    assert all(block.attn.qkv.bias is None for block in shared.blocks)
