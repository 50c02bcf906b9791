"""Sinusoidal tables against a loop, and as part of timm's own forward pass."""

import math

import pytest
import timm
import torch
import torch.nn.functional as F

from attnprobe.core.errors import InputError, ShapeError
from attnprobe.models.initialisers.positions import (
    patch_positions,
    pseudo_input,
    sinusoidal_positions,
    use_sinusoidal_positions,
)

TINY = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3, "num_classes": 5}


def tiny(**options):
    return timm.create_model("vit_tiny_patch16_224", **{**TINY, **options})


@pytest.mark.parametrize(("rows", "cols", "width"), [(3, 5, 24), (1, 2, 4), (4, 4, 8)])
def test_table_equals_a_loop(rows, cols, width):
    table = sinusoidal_positions(rows, cols, width)
    quarter = width // 4
    for row in range(rows):
        for col in range(cols):
            for j in range(quarter):
                f = 10000 ** (-j / quarter)
                expected = [math.sin(row * f), math.sin(col * f), math.cos(row * f), math.cos(col * f)]
                assert table[row * cols + col, j::quarter].tolist() == pytest.approx(expected, abs=1e-6)


def test_width_must_be_a_multiple_of_four():
    with pytest.raises(ShapeError, match="30 is not a multiple of 4"):
        sinusoidal_positions(2, 2, 30)


def test_the_table_is_neither_a_parameter_nor_saved_but_follows_the_model():
    model = tiny()
    use_sinusoidal_positions(model)
    assert "pos_embed" not in dict(model.named_parameters()) | model.state_dict()
    assert model.double().pos_embed.dtype == torch.float64
    assert model.to("meta").pos_embed.is_meta


@pytest.mark.parametrize("reg_tokens", [0, 2])
def test_positions_are_added_to_patches_before_prefix_tokens_are_put_in_front(reg_tokens):
    model = tiny(reg_tokens=reg_tokens).eval()
    use_sinusoidal_positions(model)
    patches = torch.randn(2, 16, 24)
    tokens = model._pos_embed(patches)
    torch.testing.assert_close(tokens[:, 1 + reg_tokens :], patches + sinusoidal_positions(4, 4, 24))
    torch.testing.assert_close(tokens[:, :1], model.cls_token.expand(2, -1, -1))


def test_other_image_sizes_resample_the_table():
    model = tiny(dynamic_img_size=True).eval()
    use_sinusoidal_positions(model)
    with torch.no_grad():
        assert model(torch.randn(1, 3, 24, 16)).shape == (1, 5)


def test_patch_positions_leave_prefix_entries_of_learned_tables_out():
    model = tiny(reg_tokens=1)
    assert torch.equal(patch_positions(model), model.pos_embed.detach()[0, 2:])


@pytest.mark.parametrize(
    ("kind", "largest", "variance"), [("U", 1.0, 1 / 3), ("G", 2.0, 0.479)], ids=["uniform", "normal cut at 2"]
)
def test_pseudo_inputs_have_the_distribution_they_say(kind, largest, variance, monkeypatch):
    monkeypatch.setattr(F, "layer_norm", lambda x, _shape: x)
    torch.manual_seed(0)
    table = sinusoidal_positions(32, 32, 64)
    drawn = pseudo_input(kind, table)
    assert drawn.abs().max() <= largest
    assert drawn.var().item() == pytest.approx(variance, rel=0.02)
    torch.manual_seed(0)
    torch.testing.assert_close(pseudo_input("A" if kind == "U" else "B", table), table + drawn)


def test_pseudo_inputs_are_normalised_over_the_width():
    tokens = pseudo_input("P", sinusoidal_positions(4, 4, 32))
    torch.testing.assert_close(tokens.mean(-1), torch.zeros(16), atol=1e-6, rtol=0)
    torch.testing.assert_close(tokens.square().mean(-1), torch.ones(16), atol=1e-4, rtol=0)


def test_unknown_pseudo_input_is_refused():
    with pytest.raises(InputError, match="pseudo_input='X'"):
        pseudo_input("X", torch.zeros(4, 4))
