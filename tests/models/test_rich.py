"""Rich head interaction against loops written from our reading of it."""

import pytest
import torch

from attnprobe.capturing import certify
from attnprobe.core.errors import InputError
from attnprobe.models import build_model
from attnprobe.models.variants.realformer import RealFormer
from attnprobe.models.variants.rich import HeadMLP, RichScores, RichValues, RichViT
from tests.models import reference as ref


def loop_mlp(mlp, scores):
    """F at one (query, key) after the other, one neuron at a time."""
    out = torch.zeros_like(scores)
    for i in range(scores.shape[0]):
        for a in range(scores.shape[2]):
            for b in range(scores.shape[3]):
                signal = scores[i, :, a, b].tolist()
                for depth, fc in enumerate((mlp.fc1, mlp.fc2, mlp.fc3)):
                    weight, bias = fc.weight.tolist(), fc.bias.tolist()
                    sums = [sum(w * s for w, s in zip(row, signal, strict=True)) + c
                            for row, c in zip(weight, bias, strict=True)]  # fmt: skip
                    signal = [s if s > 0 or depth == 2 else 0.2 * s for s in sums]
                out[i, :, a, b] = torch.tensor(signal, dtype=scores.dtype)
    return out


def test_scores_are_fused_as_our_reading_says():
    layer = ref.randomised(RichScores(16, num_heads=4, qkv_bias=True, interacts=True, noise_std=0.0))
    x, before = ref.tokens(), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        out, handed_on = layer(x, before)
        u = ref.loop_scores(layer, x) + before
        z = u + loop_mlp(layer.interact, u)
        torch.testing.assert_close(handed_on, z)
        torch.testing.assert_close(out, ref.project(layer, ref.loop_softmax(z) @ ref.heads_of(layer, x, 2)))


def test_the_maps_of_a_model_follow_the_whole_cascade():
    model = ref.randomised(RichViT(**ref.TINY))
    inputs, (maps,) = ref.record_with_inputs(model)
    with torch.no_grad():
        z = ref.loop_scores(model.blocks[0].attn, inputs[0])
        torch.testing.assert_close(maps.values[:, 0], ref.loop_softmax(z))
        for index in (1, 2):
            u = ref.loop_scores(model.blocks[index].attn, inputs[index]) + z
            z = u + loop_mlp(model.blocks[index].attn.interact, u)
            torch.testing.assert_close(maps.values[:, index], ref.loop_softmax(z))


def test_a_fresh_model_and_a_residual_cascade_are_realformer():
    fresh, pixels = RichViT(**ref.TINY).eval(), torch.randn(2, 3, 16, 16)
    for model in (fresh, RichViT(**ref.TINY, cascade="residual").eval()):
        realformer = RealFormer(**ref.TINY).eval()
        realformer.load_state_dict({k: v for k, v in model.state_dict().items() if "interact" not in k})
        with torch.no_grad():
            assert torch.equal(model(pixels), realformer(pixels))


@pytest.mark.parametrize("fuse", ["score", "value"])
def test_no_cascade_is_the_plain_vit(fuse):
    ref.assert_is_plain(RichViT(**ref.TINY, cascade="none", fuse=fuse))


def test_parameters_are_those_of_one_small_network_per_block_after_the_first():
    assert sum(p.numel() for p in HeadMLP(12).parameters()) == 24 * 12**2 + 9 * 12 == 3564
    with torch.device("meta"):
        vit, rich, value = (
            sum(p.numel() for p in build_model(name, depth=12, **options).parameters())
            for name, options in (("vit_16", {}), ("richvit_16", {}), ("richvit_16", {"fuse": "value"}))
        )
    assert rich - vit == 11 * 3564 and value - vit == 11 * 145


def test_every_parameter_gets_a_gradient_after_one_step():
    for options in ({}, {"fuse": "value"}):
        model = ref.randomised(RichViT(**ref.TINY, **options))
        model(torch.randn(2, 3, 16, 16, dtype=torch.float64)).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())


def test_noise_acts_in_training_only_has_the_size_asked_for_and_is_handed_on():
    layer = RichScores(16, num_heads=4, interacts=False, noise_std=0.5).double()
    x = torch.randn(8, 50, 16, dtype=torch.float64)
    with torch.no_grad():
        quiet, noisy = layer.eval()(x)[1], layer.train()(x)[1]
    noise = (noisy - quiet).std().item()
    assert abs(noise - 0.5) < 0.01  # 80,000 numbers: the standard error is 0.00125
    assert torch.equal(layer.eval()(x)[1], quiet)


def test_values_are_fused_as_our_second_reading_says():
    layer = ref.randomised(RichValues(16, num_heads=4, qkv_bias=True, interacts=True))
    x, before = ref.tokens(), torch.randn(2, 4, 5, 4, dtype=torch.float64)
    for layer.fused_attn in (True, False):
        with torch.no_grad():
            y = ref.loop_softmax(ref.loop_scores(layer, x)) @ ref.heads_of(layer, x, 2)
            for h in range(4):
                y[:, h] += layer.gate * sum(layer.theta[h, g] * before[:, g] for g in range(4))
            out, handed_on = layer(x, before)
            torch.testing.assert_close(handed_on, y)
            torch.testing.assert_close(out, ref.project(layer, y))


def test_fused_values_start_as_the_plain_vit_and_both_paths_agree():
    ref.assert_is_plain(RichViT(**ref.TINY, fuse="value"))
    model = ref.randomised(RichViT(**ref.TINY, fuse="value"))
    ref.assert_paths_agree(model)
    assert certify(model, torch.randn(2, 3, 16, 16, dtype=torch.float64)).output_equal


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cascade": "mpl"}, "Did you mean 'mlp'"),
        ({"fuse": "key"}, "fuse='key' is not a choice"),
        ({"fuse": "value", "cascade": "residual"}, "no residual form in our reading"),
        ({"noise_std": -1.0}, "must be >= 0"),
        ({"noise_std": 0.1, "fuse": "value"}, "scores that are passed on"),
        ({"noise_std": 0.1, "cascade": "none"}, "scores that are passed on"),
    ],
)
def test_options_that_do_not_go_together_say_why(options, message):
    with pytest.raises(InputError, match=message):
        RichViT(**ref.TINY, **options)
