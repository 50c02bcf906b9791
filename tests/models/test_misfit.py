"""Weights that are not the named model's: what they have and it lacks is named, and advice leads on."""

import re

import pytest
import timm
import torch

from attnprobe.core.errors import CheckpointError
from attnprobe.models.load import load_model

PLAIN, DISTILLED = "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"
SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 4, "num_classes": 5}
OWN = "embed_dim=24,depth=2,num_heads=4,patch_size=8"


def state(name=PLAIN, **options):
    return timm.create_model(name, **SIZES, **options).state_dict()


def refused(tmp_path, content, model):
    """The message, and the model that it advises to name; the file is opened by that."""
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(CheckpointError) as raised:
        load_model(tmp_path / "x.pth", model=model)
    advised = re.search(r"model='([^']*)'", str(raised.value))
    return str(raised.value), advised and advised[1]


@pytest.mark.parametrize(
    ("held", "named", "advised"), [(DISTILLED, PLAIN, DISTILLED), (PLAIN, DISTILLED, "deit_tiny_patch16_224")]
)
@pytest.mark.parametrize("more", ["", ",img_size=32"])
def test_a_distillation_token_is_named_with_the_model_that_has_it_or_has_none(tmp_path, held, named, advised, more):
    said, model = refused(tmp_path, state(held), f"{named}:{OWN}{more}")
    assert "distillation token" in said and model.startswith(f"{advised}:")
    assert load_model(tmp_path / "x.pth", model=model).blocks[0].attn.num_heads == 4


@pytest.mark.filterwarnings("ignore:.*positions are taken")
@pytest.mark.parametrize("options", [{"qk_norm": True}, {"init_values": 1e-5}, {"qk_norm": True, "init_values": 1e-5}])
@pytest.mark.parametrize("sizes", ["", f":{OWN}"])
def test_an_option_that_gives_the_unknown_parameters_is_advised_and_opens_the_file(tmp_path, options, sizes):
    said, model = refused(tmp_path, state(**options), PLAIN + sizes)
    assert "unknown to it" in said and all(f"{key}=" in model for key in options)
    load_model(tmp_path / "x.pth", model=model.replace("HEADS", "4"))


def test_adapters_are_to_be_merged_first_and_other_parameters_are_named(tmp_path):
    own = state()
    adapted = {f"base_model.model.{key}": value for key, value in own.items()}
    adapted["base_model.model.blocks.0.attn.qkv.lora_A.default.weight"] = torch.zeros(4, 24)
    for content in (adapted, {**own, "blocks.0.attn.qkv.lora_A": torch.zeros(4, 24)}):
        said, model = refused(tmp_path, content, f"{PLAIN}:{OWN}")
        assert "(LoRA)" in said and "merge" in said and model is None
    said, model = refused(tmp_path, {**own, "blocks.0.attn.foo": torch.zeros(4)}, f"{PLAIN}:{OWN}")
    assert "No option of" in said and said.count("blocks.0.attn.foo") == 2 and model is None
