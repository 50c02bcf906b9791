"""Files of other people's training scripts open as they were trained, or say in one line what to do."""

import argparse
import pathlib

import numpy as np
import pytest
import timm
import torch

from attnprobe.core.errors import CheckpointError
from attnprobe.models import input_spec, load_model
from attnprobe.models.load import open_model
from attnprobe.models.unwrap import prefixes, unused, unwrap

NAME = "vit_tiny_patch16_224"
SIZES = {"depth": 2, "embed_dim": 24, "num_heads": 3}


def small(**options):
    torch.manual_seed(1)
    model = timm.create_model(NAME, **{"img_size": 64, "num_classes": 5, **SIZES, **options}).eval()
    if model.pos_embed is not None:
        torch.nn.init.normal_(model.pos_embed)
    return model


def of_timm(model, **args):
    """What timm's train.py writes."""
    args = {"model": NAME, "num_classes": model.num_classes, "model_kwargs": SIZES, "img_size": None, **args}
    return {"arch": NAME, "args": argparse.Namespace(**args), "state_dict": model.state_dict()}


def wrapped(prefix, state):
    return {prefix + name: value for name, value in state.items()}


@pytest.mark.parametrize("size", [(64, 256), (128, 256), (256, 64), (32, 48)])
@pytest.mark.parametrize("said", ["input_size", "img_size", "model_kwargs"])
def test_a_rectangular_timm_checkpoint_opens_with_its_table_as_stored(tmp_path, size, said):
    model = small(img_size=size)
    args = {
        "input_size": {"input_size": [3, *size]},
        "img_size": {"img_size": list(size)},
        "model_kwargs": {"model_kwargs": {**SIZES, "img_size": size}},
    }[said]
    torch.save(of_timm(model, **args), tmp_path / "x.pth.tar")
    loaded = open_model(tmp_path / "x.pth.tar")
    assert loaded.notes == () and torch.equal(loaded.module.pos_embed, model.pos_embed)
    assert (
        loaded.module.patch_embed.grid_size == (size[0] // 16, size[1] // 16) and input_spec(loaded.module).size == size
    )
    pixels = torch.randn(2, 3, *size)
    assert torch.equal(loaded.module.eval()(pixels), model(pixels))


def test_mean_std_channels_and_model_kwargs_of_timms_args_are_used(tmp_path):
    model = small(img_size=32, patch_size=8, in_chans=1)
    kwargs = {**SIZES, "patch_size": 8}
    torch.save(of_timm(model, input_size=[1, 32, 32], mean=[0.1], std=[0.3], model_kwargs=kwargs), tmp_path / "x.pth")
    loaded = load_model(tmp_path / "x.pth")
    assert loaded.patch_embed.proj.weight.shape == (24, 1, 8, 8)
    assert (input_spec(loaded).mean, input_spec(loaded).std) == ((0.1,), (0.3,))


def test_a_rectangular_table_is_resized_from_its_own_grid(tmp_path):
    model = small(img_size=(64, 256))
    rows, cols = torch.meshgrid(torch.arange(4.0), torch.arange(16.0), indexing="ij")
    with torch.no_grad():  # the table holds its own rows and columns
        model.pos_embed[0, 1:, 0], model.pos_embed[0, 1:, 1] = rows.flatten(), cols.flatten()
    torch.save(of_timm(model, input_size=[3, 64, 256]), tmp_path / "x.pth")
    loaded = open_model(tmp_path / "x.pth", img_size=(128, 128))  # 8 x 8: as many patches
    assert loaded.notes == ("x.pth: the position table was resized from 4 x 16 to 8 x 8 patches.",)
    table = loaded.module.pos_embed[0, 1:].detach().unflatten(0, (8, 8))
    assert (table[..., 0].diff(dim=1).abs() < 1e-4).all() and (table[..., 1].diff(dim=0).abs() < 1e-4).all()
    assert (table[..., 0].diff(dim=0) > 0).all() and (table[..., 1].diff(dim=1) > 0).all()


def test_a_square_that_the_file_does_not_say_is_named_and_another_table_refused(tmp_path):
    torch.save(of_timm(small(img_size=(64, 256))), tmp_path / "x.pth")
    (note,) = open_model(tmp_path / "x.pth").notes
    assert "64 positions are read as 8 x 8 patches (128 px); confirm that with img_size=128" in note
    assert open_model(tmp_path / "x.pth", img_size=128).notes == ()
    assert open_model(tmp_path / "x.pth", img_size=(64, 256)).notes == ()
    torch.save(of_timm(small(img_size=(128, 256))), tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match="table of 129 entries is no square.*img_size=\\(64, 256\\)"):
        load_model(tmp_path / "y.pth")
    with pytest.raises(CheckpointError, match="cannot be resized to 4 x 4 patches: its own 128 are no square"):
        load_model(tmp_path / "y.pth", img_size=64)
    assert load_model(tmp_path / "y.pth", img_size=(128, 256)).patch_embed.grid_size == (8, 16)


PREFIXES = ("net.", "backbone.", "model.", "module.", "teacher.", "student.", "base_encoder.", "momentum_encoder.")


@pytest.mark.parametrize("prefix", [*PREFIXES, "module.student.backbone.", "model.net.", "module.base_encoder."])
def test_any_chain_of_wrappers_is_removed(tmp_path, prefix):
    model = small()
    content = of_timm(model, img_size=64)
    content["state_dict"] = {**wrapped(prefix, model.state_dict()), "criterion.weight": torch.ones(5)}
    torch.save(content, tmp_path / "x.pth")
    loaded = open_model(tmp_path / "x.pth")
    assert loaded.notes == ("x.pth: not used: criterion (1 tensors).",)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.module.state_dict().items())


def test_of_several_models_the_averaged_one_is_taken_and_said(tmp_path):
    teacher, student = small(num_classes=0).state_dict(), small(num_classes=0).state_dict()
    student = {name: value + 1 for name, value in student.items()}
    content = {"student": wrapped("module.backbone.", student), "teacher": wrapped("backbone.", teacher)}
    content["teacher"]["head.mlp.0.weight"] = torch.zeros(3, 3)
    content["args"] = argparse.Namespace(model=NAME, model_kwargs=SIZES, img_size=64)
    torch.save(content, tmp_path / "dino.pth")
    loaded = open_model(tmp_path / "dino.pth")
    said = "dino.pth: holds several models; 'teacher.backbone' is used, not 'student.module.backbone'."
    assert loaded.notes[1:] == (said,)
    assert torch.equal(loaded.module.norm.weight, teacher["norm.weight"])


@pytest.mark.parametrize("word", ["_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"])
def test_weights_of_sharded_recomputed_and_compiled_modules_open(tmp_path, word):
    model = small(img_size=64)
    inside = {name.replace("blocks.0.", f"blocks.0.{word}."): value for name, value in model.state_dict().items()}
    for prefix in ("", f"{word}.", f"module.{word}."):
        torch.save({**of_timm(model, img_size=64), "state_dict": wrapped(prefix, inside)}, tmp_path / "x.pth")
        loaded = open_model(tmp_path / "x.pth")
        assert loaded.notes == () and torch.equal(loaded.module.head.weight, model.head.weight)


@pytest.mark.parametrize(
    ("averaged", "trained"),
    [("ema", "model"), ("ema", "state_dict"), ("model_ema", "model"), ("state_dict_ema", "state_dict")],
)
@pytest.mark.parametrize("nested", [False, True])
def test_of_averaged_and_trained_weights_the_file_opens_the_averaged_and_says_so(tmp_path, averaged, trained, nested):
    one, other = small().state_dict(), {name: value + 1 for name, value in small().state_dict().items()}
    args = of_timm(small(), img_size=64)["args"]
    content = {averaged: {"module": one, "updates": 7} if nested else one, trained: other, "args": args}
    torch.save(content, tmp_path / "x.pth")
    loaded = open_model(tmp_path / "x.pth")
    assert loaded.notes == (f"x.pth: holds weights under several names; {averaged!r} is opened, not {trained!r}.",)
    assert torch.equal(loaded.module.norm.weight, one["norm.weight"])


def test_an_average_of_some_parameters_alone_is_not_opened(tmp_path):
    model = small()
    content = {"model": model.state_dict(), "ema": {"decay": 0.9, "shadow": {"norm.weight": torch.zeros(24)}}}
    torch.save({**content, "args": of_timm(model, img_size=64)["args"]}, tmp_path / "x.pth")
    assert torch.equal(open_model(tmp_path / "x.pth").module.norm.weight, model.norm.weight)


def test_a_file_without_a_head_opens_without_one_and_with_a_new_one(tmp_path):
    torch.save({**of_timm(small(num_classes=0), img_size=64, num_classes=5)}, tmp_path / "x.pth")
    loaded = open_model(tmp_path / "x.pth")
    assert loaded.module.num_classes == 0 and "holds no head" in loaded.notes[0]
    new = open_model(tmp_path / "x.pth", num_classes=3)
    assert new.module.head.weight.shape == (3, 24)
    assert new.notes == ("x.pth: the head for 3 classes has initial weights.",)


def test_parts_of_a_masked_autoencoder_that_are_no_encoder_are_named(tmp_path):
    state = small(num_classes=0).state_dict()
    state |= {"mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 24)}
    state |= wrapped("decoder_blocks.0.", {"norm1.weight": torch.zeros(8), "norm1.bias": torch.zeros(8)})
    torch.save({**of_timm(small(num_classes=0), img_size=64), "state_dict": state}, tmp_path / "x.pth")
    notes = open_model(tmp_path / "x.pth").notes
    said = "decoder_blocks (2 tensors), decoder_embed (1 tensors), mask_token (1 tensors)"
    assert notes[-1] == f"x.pth: not used: {said}."


@pytest.mark.parametrize(
    "options",
    [
        {"class_token": False, "global_pool": "avg"},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"global_pool": "avg"},
        {"global_pool": "map", "class_token": False},
        {"reg_tokens": 4},
        {"patch_size": 8},
        {"in_chans": 1},
    ],
)
def test_options_that_the_weights_show_need_not_be_said(tmp_path, options):
    model = small(**options)
    torch.save(of_timm(model, img_size=64), tmp_path / "x.pth")
    loaded = open_model(tmp_path / "x.pth").module
    pixels = torch.randn(2, options.get("in_chans", 3), 64, 64)
    assert torch.equal(loaded.eval()(pixels), model(pixels))


@pytest.mark.parametrize("key", ["hyper_parameters", "hparams", "config", "args"])
@pytest.mark.parametrize("name", ["name", "model_name", "arch"])
def test_arguments_nested_under_model_count(tmp_path, key, name):
    model = small()
    nested = {"model": {name: NAME, "num_classes": 5, "model_kwargs": SIZES, "img_size": 64}, "lr": 1e-3}
    torch.save({"state_dict": wrapped("model.", model.state_dict()), key: nested}, tmp_path / "x.ckpt")
    assert torch.equal(load_model(tmp_path / "x.ckpt").head.weight, model.head.weight)


def test_paths_and_arrays_beside_the_weights_are_read(tmp_path):
    content = {**of_timm(small(), img_size=64, output=pathlib.Path("out")), "history": np.zeros(3)}
    torch.save(content, tmp_path / "x.pth")
    assert load_model(tmp_path / "x.pth").num_classes == 5


def test_a_misprinted_option_is_an_error_that_names_it(tmp_path):
    torch.save(of_timm(small(), model_kwargs={**SIZES, "no_embed_class": "Ture"}), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="no_embed_class='Ture' is not a value"):
        load_model(tmp_path / "x.pth")


def test_a_whole_model_is_refused_with_what_to_save(tmp_path):
    torch.save(small(), tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"nothing was run. It may be a whole model; save model.state_dict\(\)"):
        load_model(tmp_path / "x.pt", model=NAME)


def test_advice_on_a_named_model_is_to_name_its_options(tmp_path):
    torch.save(small(depth=3).state_dict(), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="is not a 'vit_tiny_patch16_224' checkpoint") as caught:
        load_model(tmp_path / "x.pth", model=NAME)
    assert "model='vit_tiny_patch16_224:depth=3" in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_of_a_trainer_points_to_its_checkpoint(tmp_path):
    (tmp_path / "checkpoint-500").mkdir()
    (tmp_path / "checkpoint-500/config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="as in hf:.*checkpoint-500"):
        load_model(tmp_path)


def test_parts_that_a_vision_transformer_computes_with_are_never_left_out():
    own = small().state_dict()
    extra = ("blocks.9.norm1.weight", "reg_token", "fc_norm.weight", "head.0.weight", "acc.tp", "decoder.blocks.0.x")
    assert unused(extra, own) == {"acc": 1, "decoder": 1}


def test_names_outside_of_the_model_are_kept_for_judgement():
    one = torch.ones(1)
    state, notes = unwrap({"net.blocks.0.norm1.weight": one, "net.head.weight": one, "loss.weight": one})
    assert set(state) == {"blocks.0.norm1.weight", "head.weight", "loss.weight"} and notes == []
    assert prefixes(["module.net.a", "teacher.b"]) == ["", "module.", "module.net.", "teacher."]
