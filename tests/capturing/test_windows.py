"""Maps of windows, put back into the picture, give what the layer gives for the whole picture."""

from functools import partial

import pytest
import timm
import torch
import torchvision
from timm.models.swin_transformer import window_partition, window_reverse
from torch import nn

import attnprobe as ap
from attnprobe.capturing import record
from attnprobe.capturing.windows import positions
from attnprobe.core.errors import CaptureError

SWIN = {
    "img_size": (32, 64),
    "window_size": 4,
    "depths": (2, 2),
    "embed_dim": 24,
    "num_heads": (2, 3),
    "num_classes": 3,
}


CASES = {
    "timm swin": (partial(timm.create_model, "swin_tiny_patch4_window7_224", **SWIN), "layers.{}.blocks.{}.attn"),
    "timm swin v2": (partial(timm.create_model, "swinv2_tiny_window8_256", **SWIN), "layers.{}.blocks.{}.attn"),
    "torchvision swin": (
        partial(torchvision.models.SwinTransformer, [4, 4], 24, [2, 2], [2, 3], [4, 4], num_classes=3),
        "features.{}.{}.attn",
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("block", [0, 1], ids=["windows", "shifted windows"])
def test_a_map_of_the_picture_times_v_is_the_blocks_attention(case, block):
    build, path = CASES[case]
    torch.manual_seed(0)
    model, pixels = build().eval(), torch.randn(2, 3, 32, 64)
    stage = 1 if case == "torchvision swin" else 0
    attn = model.get_submodule(path.format(stage, block))
    around = model.get_submodule(path.format(stage, block).rpartition(".")[0])
    seen = {}
    hook = around.norm1.register_forward_hook(lambda _m, _args, out: seen.update(x=out))
    first = around.register_forward_pre_hook(lambda _m, args: seen.update(given=args[0]))
    with torch.inference_mode(), record(model, unwindow=True) as recorder:
        model(pixels)
        maps = recorder.take()[0]
    hook.remove(), first.remove()
    with torch.inference_mode():
        v2 = case == "timm swin v2"  # normalises after attention
        x = seen["given"] if v2 else seen["x"]
        expected = attn(x) if case == "torchvision swin" else around._attn(x)
        assert (maps.kind, maps.stage, maps.grid.rows, maps.grid.cols) == ("self", "stage1", 8, 16)
        bias = attn.qkv.bias if attn.qkv.bias is not None else torch.cat([attn.q_bias, attn.k_bias, attn.v_bias])
        v = torch.nn.functional.linear(x.flatten(1, 2), attn.qkv.weight, bias).chunk(3, -1)[2]
        v = v.unflatten(-1, (attn.num_heads, -1)).transpose(1, 2)
        ours = attn.proj((maps.values[:, block] @ v).transpose(1, 2).flatten(2)).unflatten(1, (8, 16))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
    inside = (maps.values[:, block] > 1e-9).sum(-1).flatten()
    assert inside.max() == 16 and (block == 0) == (inside.min() == 16)


@pytest.mark.parametrize("kind", ["block", "grid"])
def test_maxvit_windows_and_grids(kind):
    torch.manual_seed(0)
    model = timm.create_model("maxvit_pico_rw_256", img_size=(64, 128), depths=(1, 1), embed_dim=(32, 64)).eval()
    attention = model.stages[0].blocks[0].get_submodule(f"attn_{kind}")
    seen = {}
    hook = attention.norm1.register_forward_hook(lambda _m, _args, out: seen.update(x=out))
    with torch.inference_mode(), record(model, unwindow=True) as recorder:
        model(torch.randn(2, 3, 64, 128))
        maps = recorder.take()[0]
        hook.remove()
        x = seen["x"]
        expected = attention._partition_attn(x)
        inner = attention.attn
        split = (inner.num_heads, 3, -1) if inner.head_first else (3, inner.num_heads, -1)
        v = inner.qkv(x).flatten(1, 2).unflatten(-1, split)
        v = (v[..., 2, :] if inner.head_first else v[:, :, 2]).transpose(1, 2)
        values = maps.values[:, ("block", "grid").index(kind)]
        ours = inner.proj((values @ v).transpose(1, 2).flatten(2)).view_as(expected)
    assert maps.kind == "self" and maps.grid.rows * maps.grid.cols == values.shape[-1]
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_positions_by_hand():
    plain = positions(2, 4, (2, 2), (0, 0), strided=False)
    assert plain.tolist() == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert positions(2, 4, (2, 2), (0, 1), strided=False).tolist() == [[1, 2, 5, 6], [3, 0, 7, 4]]
    assert positions(2, 4, (2, 2), (0, 0), strided=True).tolist() == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_windows_of_unknown_order_are_an_error():
    model = timm.create_model("hiera_tiny_224", img_size=(64, 64), stages=(1, 1, 2), q_pool=2).eval()
    with torch.inference_mode(), record(model, unwindow=True), pytest.raises(CaptureError, match="unwindow=False"):
        model(torch.randn(1, 3, 64, 64))


def swin():
    torch.manual_seed(0)
    return timm.create_model("swin_tiny_patch4_window7_224", **SWIN).eval()


class Named(nn.Module):
    """A network whose name has "grid" in it."""

    def __init__(self):
        super().__init__()
        self.gridnet = swin()

    def forward(self, images):
        return self.gridnet(images)


def with_another_name_for_its_shift():
    """The same network, whose blocks call their shift `roll`."""
    model = swin()
    for block in (block for layer in model.layers for block in layer.blocks):
        block.roll = block.shift_size
        del block.shift_size

        def attend(x, block=block):
            _, rows, cols, _ = x.shape
            x = x.roll((-block.roll[0], -block.roll[1]), (1, 2))
            parts = window_partition(x, block.window_size).flatten(1, 2)
            parts = block.attn(parts, mask=block.attn_mask).unflatten(1, block.window_size)
            return window_reverse(parts, block.window_size, rows, cols).roll(block.roll, (1, 2))

        block._attn = attend
    return model


@pytest.mark.parametrize("build", [Named, with_another_name_for_its_shift])
def test_windows_are_where_they_respond_whatever_they_are_called(build):
    pixels = torch.randn(2, 3, 32, 64, generator=torch.Generator().manual_seed(0))
    model = build()
    torch.testing.assert_close(model(pixels), swin()(pixels))
    for plain, named in zip(
        ap.capture(swin(), pixels, "weights", unwindow=True), ap.capture(model, pixels, "weights", unwindow=True),
        strict=True,
    ):  # fmt: skip
        assert named.kind == plain.kind == "self" and torch.equal(named.values, plain.values)


def test_windows_that_are_not_where_their_names_say_are_refused_where_places_do_not_show():
    """MaxViT, whose convolutions let tokens respond as many do; without "grid" its strided windows look plain."""
    pixels = torch.randn(2, 3, 64, 128, generator=torch.Generator().manual_seed(0))
    model = timm.create_model("maxvit_pico_rw_256", img_size=(64, 128), depths=(1, 1), embed_dim=(32, 64)).eval()
    assert all(maps.kind == "self" for maps in ap.capture(model, pixels, "weights", unwindow=True))
    for block in (block for stage in model.stages for block in stage.blocks):
        block.__dict__["attn_grid"] = block._modules["attn_tiles"] = block._modules.pop("attn_grid")
    with pytest.raises(CaptureError, match="its windows do not respond to the image where its names say"):
        list(ap.capture(model, pixels, "weights", unwindow=True))
