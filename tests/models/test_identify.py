"""Weights alone tell which model they are of, whatever its depth, width and options."""

import pytest
import torch
from safetensors.torch import save_file

from attnprobe.core.errors import CheckpointError
from attnprobe.models import MODELS, build_model, load_model
from attnprobe.models.describe import resolve_model
from attnprobe.models.identify import identify
from attnprobe.models.variants.deepvit import DeepViT
from attnprobe.models.variants.refiner import Refiner

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "mlp_ratio": 3, "num_classes": 5}
NAMED = [
    name for name, preset in MODELS.items()
    if preset.variant.name in ("deepvit", "refiner") or name in ("vit_16", "vit_24", "vit_32_digits")
]  # fmt: skip


def on_meta(name, **options):
    with torch.device("meta"):
        return build_model(name, **options)


@pytest.mark.parametrize("name", NAMED)
def test_every_named_model_is_recognised_with_any_head(name):
    found = identify(on_meta(name, num_classes=7).state_dict())
    rebuilt = on_meta(found.name, **found.options)
    expected = MODELS[name].options
    assert (found.name, found.options["num_classes"]) == (name, 7) or (
        MODELS[found.name].options["depth"] == expected["depth"]
        and rebuilt.patch_embed.img_size[0] == expected["img_size"]
    )
    assert rebuilt.blocks[0].attn.num_heads == expected["num_heads"]
    for block, same in zip(rebuilt.blocks, on_meta(name).blocks, strict=True):
        assert getattr(block, "scale_adjustment", None) == getattr(same, "scale_adjustment", None)
        assert getattr(block.attn, "effective_scale", None) == getattr(same.attn, "effective_scale", None)


@pytest.mark.parametrize(
    "model",
    [
        lambda: DeepViT(**SMALL, depth=4, num_heads=3, reattention=(2, 3)),
        lambda: DeepViT(**{**SMALL, "img_size": 48}, depth=2, num_heads=4, conv_stem=True, in_chans=1),
        lambda: Refiner(**SMALL, depth=4, num_heads=3, share="alternate", dense=True, conv_stem=True),
        lambda: Refiner(**SMALL, depth=3, num_heads=2, refine=(True, False, True), head_expand=2),
        lambda: Refiner(**SMALL, depth=4, num_heads=2, refine=(1, 0, 1, 0), share=(0, 1, 0, 1), head_expand=1),
    ],
)
def test_options_of_any_other_size_are_read_off_the_shapes(model, tmp_path):
    torch.manual_seed(0)
    original = model().eval()
    torch.save({"state_dict_ema": {f"module.{k}": v for k, v in original.state_dict().items()}}, tmp_path / "x.pth")
    loaded, facts = resolve_model(tmp_path / "x.pth")
    pixels = torch.randn(2, original.in_chans, *original.patch_embed.img_size)
    assert torch.equal(loaded.eval()(pixels), original(pixels))
    assert facts.variant == ("deepvit" if isinstance(original, DeepViT) else "refiner")
    assert any("assumed" in note for note in facts.notes) == isinstance(
        original, DeepViT
    )  # its branch scale shows in no weight


@pytest.mark.filterwarnings("ignore:.*are read as")
def test_what_no_weight_shows_is_said(tmp_path):
    save_file(DeepViT(**SMALL, depth=2, num_heads=3).state_dict(), tmp_path / "x.safetensors")
    with pytest.warns(UserWarning, match=r"scale_adjustment=1.0, transform_scale=False assumed"):
        load_model(tmp_path / "x.safetensors")
    save_file(build_model("vit_16_digits", num_classes=3).state_dict(), tmp_path / "y.safetensors")
    with pytest.warns(UserWarning, match=r"taken for vit_16_digits .*num_heads=6 assumed"):
        load_model(tmp_path / "y.safetensors")


def test_a_plain_vit_of_unknown_size_is_not_guessed():
    plain = build_model("vit_16_digits", depth=3, embed_dim=48)
    assert identify(plain.state_dict()) is None
    assert identify({"conv.weight": torch.zeros(1)}) is None


def test_a_new_head_and_another_resolution_are_declared(tmp_path):
    model = build_model("deepvit_16_digits", num_classes=10, seed=0)
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    with pytest.warns(UserWarning) as told:
        other = load_model(tmp_path / "x.safetensors", num_classes=3, img_size=64)
    assert [str(w.message) for w in told] == [
        "x.safetensors: the position table was resized from 4 x 4 to 8 x 8 patches.",
        "x.safetensors: the head for 3 classes has initial weights.",
    ]
    assert other.head.weight.shape[0] == 3 and other.pos_embed.shape[1] == 65
    assert torch.equal(other.blocks[3].attn.qkv.weight, model.blocks[3].attn.qkv.weight)
    assert torch.equal(other.pos_embed[:, 0], model.pos_embed[:, 0])
    torch.testing.assert_close(other.pos_embed[0, [1, 8, 57, 64]], model.pos_embed[0, [1, 4, 13, 16]])  # corners


def test_a_file_at_another_resolution_keeps_it(tmp_path):
    model = build_model("deepvit_16_digits", num_classes=10, img_size=64, seed=0)
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    torch.save({"arch": "deepvit_16_digits", "state_dict": model.state_dict()}, tmp_path / "x.pth.tar")
    for name in ("x.safetensors", "x.pth.tar"):
        with pytest.warns(UserWarning, match=r"64 positions are read as 8 x 8 patches .64 px."):
            assert torch.equal(load_model(tmp_path / name).pos_embed, model.pos_embed)


def test_the_first_mismatches_and_the_likely_model_are_listed(tmp_path):
    state = on_meta("deepvit_s").state_dict()
    save_file({k: torch.zeros(v.shape, dtype=v.dtype) for k, v in state.items()}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"of other shapes \(cls_token is .*It looks like 'deepvit_s'"):
        load_model(tmp_path / "x.safetensors", model="refiner_m")


@pytest.mark.parametrize(
    ("built", "given", "advised"),
    [
        ({"depth": 4}, {}, "vit_tiny_patch16_224:depth=4"),
        ({"depth": 4, "num_classes": 3}, {"num_classes": 3}, "vit_tiny_patch16_224:depth=4,num_classes=3"),
        (
            {"depth": 2, "embed_dim": 64, "num_heads": 2, "img_size": 64},
            {"embed_dim": 64, "num_heads": 2},
            "vit_tiny_patch16_224:depth=2,embed_dim=64,img_size=64,num_heads=2.",
        ),
        (
            {"depth": 2, "embed_dim": 48},
            {"embed_dim": 48},
            "vit_tiny_patch16_224:depth=2,embed_dim=48,num_heads=HEADS, with the number of heads",
        ),
    ],
)
def test_sizes_that_the_weights_show_are_named_with_the_ones_that_were_given(tmp_path, built, given, advised):
    save_file(build_model("vit_tiny_patch16_224", **built).state_dict(), tmp_path / "x.safetensors")
    name = "vit_tiny_patch16_224" + (":" if given else "") + ",".join(f"{k}={v}" for k, v in given.items())
    with pytest.raises(CheckpointError) as caught:
        load_model(tmp_path / "x.safetensors", model=name)
    assert advised in str(caught.value).replace("'", "")
    load_model(tmp_path / "x.safetensors", model=advised.rstrip(".").partition(", ")[0].replace("HEADS", "3"))
