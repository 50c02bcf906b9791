"""The model class: the authors' arguments on timm's ViT."""

import copy

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer

from attnprobe.capturing import record
from attnprobe.core.errors import InputError, ShapeError
from attnprobe.models import build_model
from attnprobe.models.initialisers import sinusoidal_positions
from attnprobe.models.variants.structured import MIMETIC, STRUCTURED, StructuredViT

GEOMETRY = {"img_size": 16, "patch_size": 4, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 5}
IMPULSE = STRUCTURED.options


def build(seed=0, **options):
    torch.manual_seed(seed)
    return StructuredViT(**{**GEOMETRY, **options})


def test_without_its_arguments_it_is_timms_model():
    model = build()
    torch.manual_seed(0)
    plain = VisionTransformer(**GEOMETRY)
    assert model.impulses is None
    assert all(torch.equal(p, model.get_parameter(name)) for name, p in plain.named_parameters())


def test_captured_heads_look_at_their_offsets_when_there_is_nothing_else_to_see():
    model = build(**IMPULSE).eval()
    torch.nn.init.zeros_(model.patch_embed.proj.weight)
    torch.nn.init.zeros_(model.patch_embed.proj.bias)
    with torch.no_grad(), record(model) as recorder:
        model(torch.randn(1, 3, 16, 16))
        maps = recorder.take()[0].values
    query = 1 * 4 + 1
    assert maps[0, 0, :, query].argmax(-1).tolist() == [query, query - 4, query + 1]


def test_same_seed_same_model_and_another_seed_another():
    first, again, other = build(1, **IMPULSE), build(1, **IMPULSE), build(2, **IMPULSE)
    assert all(torch.equal(p, again.get_parameter(n)) for n, p in first.named_parameters())
    assert not torch.equal(first.blocks[0].attn.qkv.weight, other.blocks[0].attn.qkv.weight)


def test_building_draws_nothing_but_the_modules_before_the_initialisation():
    """So that a seed gives the authors' own draws: no learned table is drawn and thrown away."""
    build(5, sin_pe=True, weight_init="skip", class_token=False, global_pool="avg")
    after = torch.rand(3)
    torch.manual_seed(5)
    torch.nn.Conv2d(3, 48, 4)
    for _ in range(2):
        for shape in ((48, 144), (48, 48), (48, 192), (192, 48)):
            torch.nn.Linear(*shape)
    torch.nn.Linear(48, 5)
    assert torch.equal(after, torch.rand(3))


def test_skip_leaves_nothing_unset():
    model = build(weight_init="skip", reg_tokens=2)
    assert model.cls_token.abs().max() == 0 and model.reg_token.abs().max() == 0
    assert 0.015 < model.pos_embed.std() < 0.025


@pytest.mark.parametrize("options", [IMPULSE, MIMETIC.options], ids=["impulse", "mimetic"])
def test_it_learns_the_first_step(options):
    model = build(**options)
    model(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
    query = model.blocks[0].attn.qkv.weight.grad[:48]
    assert (query.norm(dim=1) > 0).all()  # also of ranks the solution does not use


def test_another_input_size_computes_the_table_anew():
    model = build(**IMPULSE).eval()
    model.set_input_size((24, 16))
    torch.testing.assert_close(model.pos_embed[0], sinusoidal_positions(6, 4, 48))
    assert "pos_embed" not in dict(model.named_parameters())
    assert model(torch.randn(1, 3, 24, 16)).shape == (1, 5)


def test_a_class_token_has_no_entry_in_the_fixed_table():
    model = build(sin_pe=True).eval()
    assert model.pos_embed.shape == (1, 16, 48)
    assert model(torch.randn(1, 3, 16, 16)).shape == (1, 5)


def test_the_meta_device_costs_nothing():
    with torch.device("meta"):
        model = StructuredViT(**{**GEOMETRY, **IMPULSE, "embed_dim": 4096, "num_heads": 64, "solver": "adam"})
    assert model.impulses is None and model.pos_embed.is_meta


def test_state_has_no_table_and_a_copy_keeps_its_impulses():
    model = build(**IMPULSE)
    assert "pos_embed" not in model.state_dict()
    assert torch.equal(copy.deepcopy(model).impulses.offsets, model.impulses.offsets)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"weight_init": "impulse3"}, InputError, "learned ones move away"),
        ({"weight_init": "impulse3", "solver": "adam"}, InputError, "learned ones move away"),
        ({**IMPULSE, "depth": 1}, InputError, "depth - 1"),
        ({**IMPULSE, "class_token": True}, InputError, "never read"),
        ({"sin_pe": True, "embed_dim": 42}, ShapeError, "42 is not a multiple of 4"),
        ({**IMPULSE, "weight_init": "impulse6"}, InputError, "has no centre"),
    ],
)
def test_what_the_method_does_not_allow_is_refused(options, error, said):
    with pytest.raises(error, match=said):
        build(**options)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_tiny_patch2_32"])
def test_the_authors_spelling_builds_the_plain_vit_with_fixed_positions(name):
    options = {"sin_pe": True, "class_token": False, "no_embed_class": True, "global_pool": "avg", "weight_init": ""}
    side = int(name.rpartition("_")[2])
    model = build_model(name, num_classes=3, seed=0, **options).eval()
    assert "pos_embed" not in model.state_dict() and model.embed_dim == 192 and len(model.blocks) == 12
    rows = cols = model.patch_embed.grid_size[0]
    assert model.patch_embed.img_size == (side, side)
    torch.testing.assert_close(model.pos_embed.reshape(-1, 192), sinusoidal_positions(rows, cols, 192))
    with torch.no_grad():
        assert model(torch.zeros(1, 3, side, side)).shape == (1, 3)


def test_a_plain_name_without_the_authors_options_is_timms():
    assert type(build_model("vit_tiny_patch16_224", depth=1)) is timm.models.vision_transformer.VisionTransformer


def test_the_authors_names_take_impulses_and_change_nothing_else():
    model = build_model("vit_tiny_patch16_224", img_size=64, depth=2, weight_init="impulse3", sin_pe=True)
    assert model.impulses is not None and model.cls_token is not None and model.global_pool == "token"


def test_a_misprinted_flag_is_an_error_that_names_it():
    with pytest.raises(InputError, match="no_embed_class='Ture' is neither true nor false"):
        build_model("vit_tiny_patch16_224", no_embed_class="Ture")
