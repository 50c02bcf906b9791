"""Checkpoints of every kind people have: loaded, or refused in one line; nothing in them is ever run."""

import argparse
import json
import os
import zipfile
from contextlib import nullcontext

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from attnprobe.core.errors import CheckpointError, InputError
from attnprobe.models import build_model, load_model, read_checkpoint
from attnprobe.models.describe import config_json, resolve_model

NAME, OPTIONS = "deepvit_16_digits", {"num_classes": 5, "depth": 2}


@pytest.fixture
def model():
    return build_model("vit_16_digits", num_classes=1000, seed=1)


def same_weights(a, b):
    return all(torch.equal(x, b.state_dict()[k]) for k, x in a.state_dict().items())


@pytest.mark.parametrize("wrap", ["bare", "state_dict", "model", "state_dict_ema", "ddp", "compiled"])
def test_training_scripts_checkpoints_load(tmp_path, model, wrap):
    state = model.state_dict()
    other = {k: torch.zeros_like(v) for k, v in state.items()}
    content = {
        "bare": state,
        "state_dict": {"state_dict": state, "epoch": 3},
        "model": {"model": state, "optimizer": {"state": {}, "param_groups": []}},
        "state_dict_ema": {"state_dict": other, "state_dict_ema": state},
        "ddp": {"state_dict": {f"module.{k}": v for k, v in state.items()}},
        "compiled": {"state_dict": {f"_orig_mod.{k}": v for k, v in state.items()}},
    }[wrap]
    torch.save(content, tmp_path / "x.pth")
    said = pytest.warns(UserWarning, match="'state_dict_ema' is opened, not 'state_dict'")
    with said if wrap == "state_dict_ema" else nullcontext():
        assert same_weights(load_model(tmp_path / "x.pth", model="vit_16_digits"), model)


def test_a_timm_checkpoint_names_its_own_model(tmp_path, model):
    args = argparse.Namespace(model="vit_16_digits", num_classes=1000, lr=0.1)
    metric = np.float64(81.2)
    torch.save({"state_dict": model.state_dict(), "args": args, "metric": metric}, tmp_path / "x.pth.tar")
    assert same_weights(load_model(tmp_path / "x.pth.tar"), model)


def test_the_number_of_classes_is_read_off_the_head(tmp_path):
    small = build_model("vit_16_digits", num_classes=7, seed=0)
    save_file(small.state_dict(), tmp_path / "x.safetensors")
    assert load_model(tmp_path / "x.safetensors", model="vit_16_digits").num_classes == 7


def test_our_folder_opens_in_timm_too(tmp_path):
    model = build_model(NAME, seed=0, **OPTIONS)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config_json(NAME, model, OPTIONS)))
    theirs = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert same_weights(theirs, model) and same_weights(load_model(tmp_path), model)
    assert theirs.pretrained_cfg["mean"] == [0.5, 0.5, 0.5] or tuple(theirs.pretrained_cfg["mean"]) == (0.5, 0.5, 0.5)
    _, facts = resolve_model(tmp_path)
    assert (facts.variant, facts.model, facts.options["num_classes"]) == ("deepvit", NAME, 5)


@pytest.fixture
def references(tmp_path):
    """References that need no network, each with the model it must open."""
    ours = build_model(NAME, seed=5, **OPTIONS)
    (tmp_path / "ours").mkdir()
    save_file(ours.state_dict(), tmp_path / "ours" / "model.safetensors")
    (tmp_path / "ours" / "config.json").write_text(json.dumps(config_json(NAME, ours, OPTIONS)))
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}
    theirs = transformers.ViTForImageClassification(transformers.ViTConfig(**sizes, image_size=32, patch_size=16))
    theirs.save_pretrained(tmp_path / "theirs")
    fresh = build_model("vit_16_digits", seed=0)
    return {
        f"local-dir:{tmp_path / 'ours'}": ours,
        str(tmp_path / "ours"): ours,
        f"hf:{tmp_path / 'theirs'}": theirs,
        "vit_16_digits": fresh,
        "torchvision:swin_t": build_model("torchvision:swin_t", seed=0),
    }


def test_every_reference_of_the_command_line_opens(references):
    for ref, expected in references.items():
        initial = ref.startswith("torchvision:")  # its trained weights would be fetched
        for opened in (load_model(ref, initial=initial), resolve_model(ref, initial=initial)[0]):
            assert same_weights(expected, opened), ref


def test_a_name_takes_a_seed_classes_and_a_size_and_a_misspelt_one_is_suggested():
    model = load_model("vit_16_digits", num_classes=3, img_size=64, seed=4)
    assert same_weights(model, build_model("vit_16_digits", num_classes=3, img_size=64, seed=4))
    with pytest.raises(InputError, match="no model and no file named 'vit_16_digit'.*Did you mean 'vit_16_digits'"):
        load_model("vit_16_digit")
    with pytest.raises(InputError, match="holds maps, not a model"):
        load_model("maps.h5")


class Canary:
    """Would create a file if anybody unpickled it."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_weights_of_own_sizes_are_loaded_by_a_name_with_options(tmp_path):
    sizes = {"embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": 32, "num_classes": 5}
    model = timm.create_model("vit_tiny_patch16_224", **sizes)
    torch.save(model.state_dict(), tmp_path / "own.pth")
    named = "vit_tiny_patch16_224:embed_dim=24,depth=2,num_heads=3"
    loaded, facts = resolve_model(tmp_path / "own.pth", named)
    assert same_weights(model, loaded) and loaded.blocks[0].attn.num_heads == 3
    assert facts.model == "vit_tiny_patch16_224" and facts.options == sizes
    with pytest.raises(CheckpointError, match="those of model='vit_tiny_patch16_224:depth=2,embed_dim=24,"):
        load_model(tmp_path / "own.pth", model="vit_tiny_patch16_224")
    with pytest.raises(InputError, match="'depth': expected NAME=VALUE"):
        load_model(tmp_path / "own.pth", model="vit_tiny_patch16_224:depth")


def test_a_name_with_options_is_a_model_of_these_sizes():
    swin = load_model("swin_tiny_patch4_window7_224:depths=[1,1,1,1],embed_dim=24,num_heads=(1,2,2,2)", initial=True)
    assert [len(stage.blocks) for stage in swin.layers] == [1, 1, 1, 1] and swin.embed_dim == 24
    assert len(load_model("vit_16_digits:depth=3").blocks) == 3
    assert len(build_model("vit_16_digits:depth=3", num_classes=4).blocks) == 3
    for option in ("pretrained=true", "pretrained_cfg=x", "checkpoint_path=x.pth", "depth=1e9"):
        with pytest.raises(
            InputError, match="no option of a model that may be set|that this option of a model may have"
        ):  # a recipe may be a file of somebody else's
            build_model(f"vit_tiny_patch16_224:{option}")
    with pytest.raises(InputError, match="expected one colon"):
        load_model("vit_16_digits:num_classes=5:8")


def test_nothing_in_a_pickle_is_run(tmp_path):
    torch.save({"state_dict": {}, "payload": Canary(tmp_path / "canary")}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="nothing was run"):
        read_checkpoint(tmp_path / "x.pth")
    assert not (tmp_path / "canary").exists()


def test_a_file_that_is_no_weights_is_said_to_be_none(tmp_path):
    contents = {"a.png": b"\x89PNG\r\n", "a.md": b"# text", "a.pth": b"", "a.h5.pth": b"\x89HDF\r\n\x1a\n"}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name} holds no weights: expected .safetensors") as caught:
            load_model(tmp_path / name)
        assert ("HDF5" in str(caught.value)) == (name == "a.h5.pth")


def test_of_a_misspelt_file_the_one_beside_it_is_suggested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.pth").touch()
    for misspelt in ("mine.pht", "./mnie.pth", str(tmp_path / "mine.pt")):
        with pytest.raises((InputError, CheckpointError), match=r"Did you mean 'mine\.pth'"):
            load_model(misspelt)


def test_bombs_are_refused_before_they_expand(tmp_path):
    torch.save({"w": torch.zeros(1 << 22)}, tmp_path / "plain.pth")
    with (
        zipfile.ZipFile(tmp_path / "plain.pth") as source,
        zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in source.infolist():
            bomb.writestr(entry.filename, source.read(entry))
    with pytest.raises(CheckpointError, match="decompression bomb"):
        read_checkpoint(tmp_path / "bomb.pth")
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "stride.pth")
    with pytest.raises(CheckpointError, match="declares"):
        read_checkpoint(tmp_path / "stride.pth")


@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_truncated_files_say_so(tmp_path, model, name):
    path = tmp_path / name
    torch.save(model.state_dict(), path) if name.endswith("pth") else save_file(model.state_dict(), path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match="truncated") as caught:
        load_model(path, model="vit_16_digits")
    assert "\n" not in str(caught.value)


def test_missing_architecture_other_architecture_and_nan_are_named(tmp_path, model):
    save_file({"conv.weight": torch.zeros(3)}, tmp_path / "unknown.safetensors")
    with pytest.raises(CheckpointError, match="does not say which model"):
        load_model(tmp_path / "unknown.safetensors")
    save_file(model.state_dict(), tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="not a 'deepvit_16_digits' checkpoint.*missing.*model='vit_16_digits'"):
        load_model(tmp_path / "x.safetensors", model="deepvit_16_digits")
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_model(tmp_path / "y.safetensors")
    state = model.state_dict()
    state["blocks.2.attn.qkv.weight"][0, 0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    with pytest.raises(CheckpointError, match=r"1 tensors, first 'blocks.2.attn.qkv.weight'"):
        load_model(tmp_path / "nan.safetensors", model="vit_16_digits")
    load_model(tmp_path / "nan.safetensors", model="vit_16_digits", allow_nonfinite=True)


@pytest.mark.parametrize("config", ["{", "[]", '{"architecture": 1}', "{}"])
def test_a_broken_config_is_named(tmp_path, model, config):
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(CheckpointError):
        load_model(tmp_path)
