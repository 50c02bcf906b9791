"""What a training script's arguments say of a model is taken where its weights do not refute it, and said."""

import argparse
from typing import Any

import pytest
import timm
import torch

from attnprobe.core.errors import CheckpointError
from attnprobe.models.load import open_model

NAME = "vit_tiny_patch16_224"


def small(**options):
    torch.manual_seed(0)
    model: Any = timm.create_model(NAME, **{"num_classes": 5, "img_size": 32, "depth": 2, "embed_dim": 24, **options})
    return model.eval()


def heads(loaded: Any) -> int:
    return loaded.module.blocks[0].attn.num_heads


CONTAINERS = {
    "args": lambda state, args: {"model": state, "args": argparse.Namespace(model=NAME, **args)},
    "Lightning": lambda state, args: {
        "state_dict": {f"model.{name}": value for name, value in state.items()},
        "hyper_parameters": {"model_name": NAME, **args},
    },
    "Hydra": lambda state, args: {"state_dict": state, "hyper_parameters": {"lr": 1, "model": {"name": NAME, **args}}},
    "config": lambda state, args: {"model": state, "config": {"model": NAME, **args}},
}


@pytest.fixture(params=CONTAINERS)
def opened(request, tmp_path):
    """A function that saves weights with arguments in one of the containers, and opens the file."""

    def save_and_open(model, **args):
        content = CONTAINERS[request.param](model.state_dict(), {"img_size": 32, **args})
        torch.save(content, tmp_path / "x.pth")
        return open_model(tmp_path / "x.pth")

    return save_and_open


SIZES = {"depth": 2, "embed_dim": 24}


@pytest.mark.parametrize(
    ("options", "args"),
    [
        ({"num_heads": 6}, {**SIZES, "num_heads": 6}),
        ({"num_heads": 3}, SIZES),
        ({"num_heads": 8, "patch_size": 8}, {**SIZES, "num_heads": 8, "patch_size": [8, 8]}),
        ({"num_heads": 2, "global_pool": "avg"}, {**SIZES, "num_heads": 2, "gp": "avg"}),
        ({"num_heads": 2, "global_pool": "avg"}, {**SIZES, "num_heads": 2, "global_pool": "avg"}),
    ],
    ids=str,
)
def test_options_stated_beside_the_models_name_are_taken_and_said(opened, options, args):
    model = small(**options)
    loaded = opened(model, **args)
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.module.eval()(pixels), model(pixels))
    assert heads(loaded) == model.blocks[0].attn.num_heads
    assert "taken from its arguments" in loaded.notes[0]
    assert f"num_heads={options['num_heads']}" in loaded.notes[0] or options["num_heads"] == 3


ONE_IS_ENOUGH = pytest.mark.parametrize("opened", ["args"], indirect=True)
"""Values are judged alike, whichever container they come from."""


@ONE_IS_ENOUGH
@pytest.mark.parametrize("value", [5, 7, 0, -1, 65536, 10**9, 2.5, "6", [6, 6], True, {"a": 1}])
def test_a_number_of_heads_that_cannot_be_is_not_used_and_said(opened, value):
    loaded = opened(small(num_heads=3), **SIZES, num_heads=value)
    assert heads(loaded) == 3
    assert any("num_heads=" in note and "does not fit its weights; not used" in note for note in loaded.notes)


@ONE_IS_ENOUGH
@pytest.mark.parametrize(
    "wrong", [{"depth": 3}, {"depth": 1000}, {"embed_dim": 48}, {"embed_dim": 60_000}, {"patch_size": 8}, {"gp": "map"}]
)
def test_what_the_weights_refute_is_not_used_and_said(opened, wrong):
    model = small(num_heads=6, depth=12, embed_dim=192)
    loaded = opened(model, num_heads=6, **wrong)
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.module.eval()(pixels), model(pixels))
    assert "num_heads=6 taken" in loaded.notes[0] and "does not fit its weights; not used" in loaded.notes[1]


def test_what_the_arguments_say_in_agreement_with_the_model_needs_no_note(opened):
    model = small(depth=12, embed_dim=192)
    stated = {"num_heads": 3, "depth": 12, "embed_dim": 192, "patch_size": (16, 16), "gp": "token"}
    assert opened(model, **stated).notes == ()


def test_options_that_load_or_run_something_are_no_arguments_that_are_taken(opened):
    stated = {"pretrained": True, "checkpoint_path": "/etc/passwd", "pretrained_cfg": {"url": "x"}, "block_fn": "x"}
    loaded = opened(small(num_heads=6), **SIZES, num_heads=6, **stated)
    assert set(loaded.options) <= {"depth", "embed_dim", "num_heads", "num_classes", "img_size"}


def test_model_kwargs_and_the_users_own_options_come_first(tmp_path):
    args = argparse.Namespace(model=NAME, num_heads=6, img_size=32, model_kwargs={**SIZES, "num_heads": 4})
    torch.save({"model": small(num_heads=4).state_dict(), "args": args}, tmp_path / "x.pth")
    assert heads(open_model(tmp_path / "x.pth")) == 4
    named = open_model(tmp_path / "x.pth", model=f"{NAME}:depth=2,embed_dim=24,num_heads=8")
    assert heads(named) == 8


@pytest.mark.parametrize("stated", [{}, {"model": NAME}, {"model": "deit_tiny_patch16_224"}], ids=str)
def test_arguments_count_beside_the_users_options_whatever_model_they_name(tmp_path, stated):
    args = argparse.Namespace(num_heads=4, img_size=32, **stated)
    torch.save({"model": small(num_heads=4).state_dict(), "args": args}, tmp_path / "x.pth")
    named = open_model(tmp_path / "x.pth", model=f"{NAME}:depth=2,embed_dim=24")
    assert heads(named) == 4 and any("num_heads=4 taken from its arguments" in note for note in named.notes)
    assert heads(open_model(tmp_path / "x.pth", model=f"{NAME}:depth=2,embed_dim=24,num_heads=8")) == 8


def test_options_of_the_file_beside_the_users_may_not_ask_for_more_than_its_weights(tmp_path):
    args = argparse.Namespace(model=NAME, model_kwargs={"embed_dim": 16384, "num_heads": 1})
    torch.save({"model": small().state_dict(), "args": args}, tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match="do not fit its weights"):
        open_model(tmp_path / "x.pth", model=f"{NAME}:depth=2")


def test_arguments_count_for_a_model_that_only_the_user_names(tmp_path):
    content = {"model": small(num_heads=6).state_dict(), "args": argparse.Namespace(num_heads=6, img_size=32, **SIZES)}
    torch.save(content, tmp_path / "x.pth")
    assert heads(open_model(tmp_path / "x.pth", model=NAME)) == 6


def test_another_kind_of_model_takes_no_notice_of_words_that_are_none_of_its_options(tmp_path):
    state = timm.create_model("resnet10t", num_classes=5).state_dict()
    args = argparse.Namespace(model="resnet10t", num_heads=6, depth=3, embed_dim=7, gp="avg")
    torch.save({"state_dict": state, "args": args}, tmp_path / "x.pth")
    assert open_model(tmp_path / "x.pth").notes == ()
