"""The values that are kept are those the model multiplies its maps with."""

import pytest
import timm
import torch
from torch import nn

from attnprobe.capturing import capture, record
from attnprobe.capturing.selection import Selection
from attnprobe.core.errors import CaptureError, InputError
from attnprobe.metrics import measure
from attnprobe.models import build_model
from attnprobe.store import open_maps
from tests.store.capturing import capture as store

TINY = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "num_heads": 3, "depth": 3, "num_classes": 4}
NEED_VALUES = (
    "own_value_similarity",
    "value_similarity",
    "head_output_norm",
    "head_output_similarity",
    "value_weighted_prefix_mass",
)


def vit():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **TINY)


def deepvit():
    return build_model("deepvit_16_digits", seed=0, **TINY)


def pixels(images=2):
    return torch.randn(images, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def taken(model, images=2, site=("weights", "effective"), **options):
    return list(capture(model, pixels(images), site, values=True, batch_size=images, **options))


@pytest.mark.parametrize(
    ("build", "watch"), [(vit, None), (deepvit, None), (vit, True)], ids=["unfused", "taps", "functional"]
)
def test_maps_times_values_enter_the_output_projection(build, watch):
    model = build().eval()
    entered = []
    hooks = [
        block.attn.proj.register_forward_pre_hook(lambda _m, args: entered.append(args[0])) for block in model.blocks
    ]
    with torch.no_grad(), record(model, ("weights", "effective"), values=True, watch=watch) as recorder:
        model(pixels())
        maps = recorder.take()[-1]
    assert maps.is_effective and len(hooks) == len(entered) == 3
    received = (maps.values @ maps.value_vectors).transpose(2, 3).flatten(3)
    torch.testing.assert_close(received, torch.stack(entered, 1))


@pytest.mark.parametrize("bias", [False, True])
def test_values_of_multihead_attention_are_its_projected_input(bias):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, bias=bias, batch_first=True)

        def forward(self, x):
            return self.attention(x, x, x, need_weights=False)[0].mean(1)

    model, x = Model().eval(), torch.randn(3, 5, 8)
    with torch.no_grad(), record(model, values=True) as recorder:
        model(x)
        (maps,) = recorder.take()
        attention = model.attention
        v = x @ attention.in_proj_weight[16:].mT + (attention.in_proj_bias[16:] if bias else 0)
    torch.testing.assert_close(maps.value_vectors[:, 0], v.unflatten(-1, (2, 4)).transpose(1, 2))


def test_values_of_chosen_heads_and_layers_are_those_of_all():
    (whole,) = taken(vit())
    (part,) = taken(vit(), selection=Selection.parse(layers="1,3", heads="2"))
    assert torch.equal(part.value_vectors, whole.value_vectors[:, [0, 2]][:, :, [1]])


def test_values_change_nothing_else():
    without = list(capture(deepvit(), pixels(), ("weights", "effective"), batch_size=2))
    for before, after in zip(without, taken(deepvit()), strict=True):
        assert before.value_vectors is None and torch.equal(before.values, after.values)


def test_windows_have_none_and_say_so():
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=56, window_size=7, depths=(1, 1, 1, 1)).eval()
    with torch.no_grad(), record(model, values=True) as recorder:
        model(torch.randn(1, 3, 56, 56))
        found = {maps.stage: maps.value_vectors is not None for maps in recorder.take()}
    assert False in found.values() and True in found.values(), "the last stage is one window: the whole picture"
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=112, window_size=7, depths=(1, 1)).eval()
    with torch.no_grad(), record(model, values=True) as recorder, pytest.raises(CaptureError, match="of windows"):
        model(torch.randn(1, 3, 112, 112))
        recorder.take()


@pytest.mark.parametrize("build", [vit, deepvit])
def test_a_file_gives_the_metrics_that_need_values_as_a_live_capture_does(build, tmp_path):
    model = build().eval()
    maps = taken(model, images=5)
    live = measure(maps, NEED_VALUES, bootstrap=0)
    path = store(tmp_path / "maps.h5", maps, dtype="float32")
    with open_maps(path, chunk_images=2) as reader:
        assert torch.equal(reader.maps(site="effective").value_vectors, maps[-1].value_vectors)
        stored = measure(reader, NEED_VALUES, bootstrap=0)
    assert live.keys() == stored.keys() == set(NEED_VALUES), "once each: on what multiplies V"
    for name in NEED_VALUES:
        assert torch.equal(torch.tensor(live[name].mean), torch.tensor(stored[name].mean)), name
        assert torch.isfinite(torch.tensor(live[name].mean)).all()


def test_weights_that_do_not_multiply_v_are_refused_by_metrics_of_what_heads_put_out():
    weights, _ = taken(deepvit())
    with pytest.raises(InputError, match="needs effective attention"):
        measure([weights], ["head_output_norm"])
