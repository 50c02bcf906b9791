"""ConvMixers under the authors' names."""

import pytest
import timm
import torch
import torch.nn.functional as F

from attnprobe.models import build_model
from attnprobe.models.initialisers import CONVMIXERS
from attnprobe.models.initialisers.filters import depthwise


@pytest.mark.parametrize("name", CONVMIXERS)
def test_name_tells_width_depth_kernel_and_which_filters_learn(name):
    _, width, depth, kernel, init = name.split("_")
    model = timm.create_model(name)
    filters = [conv.weight for conv in depthwise(model).values()]
    assert len(filters) == int(depth)
    assert filters[0].shape == (int(width), 1, int(kernel), int(kernel))
    assert all(weight.requires_grad == (init == "train") for weight in filters)
    taps = (filters[0] != 0).flatten(1).sum(-1).unique().tolist()
    assert taps == ([1] if init == "impulse" else [int(kernel) ** 2])


def test_one_step_moves_everything_but_frozen_filters():
    model = build_model("convmixer_256_8_3_box", seed=0, depth=2, filter_init="box3", filter_heads=16)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1).step()
    still = [name for name, p in model.named_parameters() if torch.equal(p, before[name])]
    assert still == [f"blocks.{i}.0.fn.0.parametrizations.weight.original" for i in range(2)]


def test_builds_without_memory():
    with torch.device("meta"):
        model = build_model("convmixer_512_6_5_impulse", num_classes=3)
        assert model(torch.empty(1, 3, 32, 32)).shape == (1, 3)
