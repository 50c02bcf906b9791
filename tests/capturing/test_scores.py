"""Scores, and queries and keys, that are kept give the softmax back that the model computed."""

import pytest
import timm
import torch
import torchvision
from torch import nn

from attnprobe.capturing import Capture, Recording, record
from attnprobe.capturing.selection import Selection
from attnprobe.core.errors import CaptureError
from attnprobe.metrics import METRICS
from attnprobe.models import build_model

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "num_heads": 3, "depth": 2, "num_classes": 4}
SIZES = {"image_size": 16, "patch_size": 8, "num_layers": 2, "num_heads": 3, "hidden_dim": 12, "mlp_dim": 24}


def timms(name, **options):
    torch.manual_seed(0)
    return timm.create_model(name, **{**TINY, **options})


MODELS = {
    "vit": lambda: timms("vit_tiny_patch16_224"),
    "rope": lambda: timms("eva02_tiny_patch14_224", patch_size=8),
    "deepvit": lambda: build_model("deepvit_16_digits", seed=0, **TINY),
    "attnscale": lambda: build_model("attnscale_16_digits", seed=0, **TINY),
    "qknorm": lambda: build_model("qknorm_16_digits", seed=0, **TINY),
    "torchvision": lambda: torchvision.models.VisionTransformer(**SIZES, num_classes=4),
    "swin": lambda: timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=12, depths=(2,), num_heads=(3,)
    ),
}


def taken(model, sites=("weights", "effective", "scores"), images=2, **options):
    torch.manual_seed(1)
    side = 32 if "Swin" in type(model).__name__ else 16
    capturing = Capture(Recording(model, sites, **options), torch.randn(images, 3, side, side))
    return {maps.site: maps for maps in capturing}, capturing.certificate


@pytest.mark.parametrize("name", MODELS)
def test_the_softmax_of_the_scores_is_the_maps(name):
    maps, certificate = taken(MODELS[name](), unwindow=name == "swin")
    scores, weights = maps["scores"], maps["weights"]
    torch.testing.assert_close(scores.values.softmax(-1), weights.values, rtol=0, atol=1e-6)
    assert not scores.stochastic and not scores.is_effective and scores.layers == weights.layers
    assert ("effective" in maps) == (name == "deepvit")
    assert all(layer.rebuilt_error <= 1e-6 for layer in certificate.layers)
    assert "softmax made again is off by at most" in certificate.facts()
    assert all(METRICS[name].refusal(scores) for name in ("row_entropy", "layer_similarity", "head_divergence"))


def test_scores_hold_scale_bias_and_mask_and_know_shifted_windows():
    model = MODELS["swin"]().eval()
    maps, _ = taken(model, images=1)
    attention, given = model.layers[0].blocks[1].attn, []
    attention.qkv.register_forward_hook(lambda _m, _args, out: given.append(out))
    torch.manual_seed(1)
    model(torch.randn(1, 3, 32, 32))
    q, k, _ = given[0].unflatten(-1, (3, 3, -1)).permute(2, 0, 3, 1, 4)
    mask = model.layers[0].blocks[1].attn_mask
    expected = (q * attention.scale) @ k.mT + attention._get_rel_pos_bias() + mask[:, None]
    torch.testing.assert_close(maps["scores"].values[0, 1], expected.transpose(0, 1).flatten(1, 2))
    whole, _ = taken(model, images=1, unwindow=True)
    assert whole["scores"].values.isneginf().any()


def test_scores_alone_come_without_maps_and_in_the_parts_that_were_chosen():
    selection = Selection.parse(layers="2", heads="1,3", queries="cls")
    maps, _ = taken(MODELS["vit"](), ("scores",), selection=selection)
    whole, _ = taken(MODELS["vit"]())
    assert list(maps) == ["scores"] and maps["scores"].values.shape == (2, 1, 2, 1, 5)
    assert torch.equal(maps["scores"].values, whole["scores"].values[:, 1:, ::2, :1])


def test_layers_of_several_softmaxes_have_no_scores():
    with pytest.raises(CaptureError, match="has no scores"):
        taken(build_model("differential_16_digits", seed=0, **{**TINY, "num_heads": 2}))


@pytest.mark.parametrize("masked", [None, "bool", "float"])
def test_scores_of_multihead_attention_know_its_mask(masked):
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 12, 8, 8)
            self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

        def forward(self, pixels):
            x = self.patches(pixels).flatten(2).mT
            hidden = None if masked is None else torch.eye(4).bool()
            hidden = torch.eye(4) if masked == "float" else hidden
            return self.attention(x, x, x, attn_mask=hidden)[0]

    torch.manual_seed(0)
    maps, _ = taken(Masked())
    values = maps["scores"].values
    torch.testing.assert_close(values.softmax(-1), maps["weights"].values)
    assert values.isneginf().any() == (masked == "bool")


STANDARD = ("vit", "rope", "qknorm", "torchvision")


@pytest.mark.parametrize("name", STANDARD)
def test_queries_and_keys_give_the_maps_back(name):
    torch.manual_seed(0)
    maps, certificate = taken(MODELS[name](), ("weights", "effective"), factors=True)
    torch.manual_seed(0)
    plain, _ = taken(MODELS[name](), ("weights", "effective"))
    queries, keys = maps["weights"].factors
    again = (queries @ keys.mT).softmax(-1)
    torch.testing.assert_close(again, plain["weights"].values, rtol=0, atol=1e-6)
    assert maps["weights"].is_effective and all(layer.rebuilt_error <= 1e-6 for layer in certificate.layers)
    torch.manual_seed(0)
    part, _ = taken(
        MODELS[name](), ("weights",), factors=True, selection=Selection.parse(layers="2", heads="2", queries="1:3")
    )
    assert torch.equal(part["weights"].factors[0], queries[:, 1:, 1:2, 1:3])
    assert torch.equal(part["weights"].factors[1], keys[:, 1:, 1:2])


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(STANDARD)))
def test_layers_that_are_more_than_a_softmax_of_a_product_refuse(name):
    with pytest.raises(CaptureError, match="Store maps"):
        taken(MODELS[name](), ("weights", "effective"), factors=True)


def test_scores_that_a_model_overwrites_are_those_of_before():
    class Rude(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches = nn.Conv2d(3, 12, 8, 8)

        def forward(self, pixels):
            x = self.patches(pixels).flatten(2).mT
            scores = x @ x.mT
            weights = scores.softmax(-1)
            scores.zero_()
            return weights @ x

    with torch.inference_mode(), record(Rude(), ("weights", "scores")) as recorder:
        recorder_input = torch.randn(2, 3, 16, 16)
        recorder._model(recorder_input)
        weights, scores = recorder.take()
    torch.testing.assert_close(scores.values.softmax(-1), weights.values)
