"""One state dict in a list, a tuple or under a key of the user's own is opened; of several the names are said."""

import pytest
import timm
import torch

from attnprobe.core.errors import CheckpointError
from attnprobe.models.load import load_model

NAME = "vit_tiny_patch16_224:embed_dim=24,depth=1,num_heads=4,img_size=32"
STATE = timm.create_model(
    "vit_tiny_patch16_224", embed_dim=24, depth=1, num_heads=4, img_size=32, num_classes=5
).state_dict()
OTHER = {key: value + 1 for key, value in STATE.items()}


def opened(tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    return load_model(tmp_path / "x.pth", model=NAME)


@pytest.mark.parametrize(
    "content",
    [[STATE], (3, STATE), (STATE, {"state": {}, "param_groups": []}), [{"model": STATE}], {"epoch": 3, "mine": STATE}],
    ids=["list", "tuple", "optimizer", "script", "own key"],
)
def test_the_only_state_dict_is_opened(tmp_path, content):
    found = opened(tmp_path, content).state_dict()
    assert all(torch.equal(found[key], value) for key, value in STATE.items())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([STATE, OTHER], "a list of 2: dict of"),
        ([1, "x"], "a list of 2: int, str"),
        (torch.zeros(2), "holds Tensor"),
        ({"model_a": STATE, "model_b": OTHER}, "several models: 'model_a', 'model_b'"),
    ],
)
def test_what_is_held_instead_is_said(tmp_path, content, said):
    with pytest.raises(CheckpointError, match=said):
        opened(tmp_path, content)
