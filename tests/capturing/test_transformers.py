"""Hugging Face models give the attentions they return themselves when asked, also where they cannot be asked."""

import pytest
import torch
import transformers

from attnprobe.capturing import capture, certify, record
from tests.capturing.oracle import no_trace

TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 16,
}
SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4}

FAMILIES = {
    "ViT": ("ViTConfig", "ViTModel", TINY, ("cls",)),
    "DeiT": ("DeiTConfig", "DeiTModel", TINY, ("cls", "dist")),
    "DINOv2": ("Dinov2Config", "Dinov2Model", TINY, ("cls",)),
    "DINOv2 registers": (
        "Dinov2WithRegistersConfig",
        "Dinov2WithRegistersModel",
        {**TINY, "num_register_tokens": 2},
        ("cls", "reg0", "reg1"),
    ),
    "DINOv3": ("DINOv3ViTConfig", "DINOv3ViTModel", {**TINY, "num_register_tokens": 2}, ("cls", "reg0", "reg1")),
    "BEiT": ("BeitConfig", "BeitModel", TINY, ("cls",)),
    "CLIP": ("CLIPVisionConfig", "CLIPVisionModel", TINY, ("cls",)),
    "SigLIP": ("SiglipVisionConfig", "SiglipVisionModel", TINY, ()),
    "Swin": ("SwinConfig", "SwinModel", SWIN, ()),
}


def built(family, implementation):
    config, model, options, _ = FAMILIES[family]
    torch.manual_seed(0)
    made = getattr(transformers, config)(**options)
    return getattr(transformers, model)._from_config(made, attn_implementation=implementation).eval()


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("family", FAMILIES)
def test_maps_equal_what_the_model_returns_when_asked(family, implementation):
    model, asked = built(family, implementation), built(family, "eager")
    asked.load_state_dict(model.state_dict())
    pixels = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        before = model(pixels).last_hidden_state
        attentions = asked(pixels, output_attentions=True).attentions
        with no_trace(model), record(model, ("weights", "effective")) as recorder:
            assert torch.equal(model(pixels).last_hidden_state, before)
            taken = recorder.take()
    proof = certify(model, pixels)
    assert proof.output_equal and all(layer.value_error < 1e-5 for layer in proof.layers)
    maps = [layer for m in taken if m.stage != "pool" for layer in m.values.unbind(1)]
    maps = maps[1::2] if family == "Swin" else maps  # it returns the last block of each stage
    assert len(maps) == len(attentions)
    for ours, theirs in zip(maps, attentions, strict=True):
        if len(theirs) > len(ours):  # [image * window, head, query, key]
            theirs = theirs.unflatten(0, (len(ours), -1)).transpose(1, 2).flatten(2, 3)
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)
    grid = taken[0].grid
    assert grid.prefix == FAMILIES[family][3]
    side = 16 if family == "Swin" else 2
    assert (grid.rows, grid.cols) == (side, side)
    assert [m.stage for m in taken if m.stage == "pool"] == ["pool"] * (family == "SigLIP")


def test_predictions_and_tokens_travel_with_the_maps():
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**TINY, num_labels=5)).eval()
    pixels = torch.randn(3, 3, 32, 32)
    maps = next(iter(capture(model, pixels, tokens=True, batch_size=3)))
    with torch.inference_mode():
        out = model(pixels, output_hidden_states=True)
    assert torch.equal(maps.outcome.prediction, out.logits.argmax(-1))
    torch.testing.assert_close(maps.tokens[:, 0], out.hidden_states[1])
