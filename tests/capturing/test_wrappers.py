"""Models in wrappers, exported or quantised, and those that cannot run: captured, or refused in one true line."""

import subprocess
import sys

import pytest
import timm
import torch
from torch import nn

import attnprobe as ap
from attnprobe.core.errors import AttnprobeError, CaptureError, InputError

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def vit():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10).eval()


def maps_of(model, images=X, **options):
    return torch.cat([m.values for m in ap.capture(model, images, **options)])


class Scaled(nn.Module):
    """A model whose forward pass needs more than pixels."""

    def __init__(self):
        super().__init__()
        self.vit = vit()

    def forward(self, x, scale):
        return self.vit(x * scale)


def test_an_exported_program_has_the_maps_of_its_model():
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(vit(), (X,), dynamic_shapes={"x": {0: batch}}).module()
    torch.testing.assert_close(maps_of(exported), maps_of(vit()), rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")  # of PyTorch, that this way to quantise is old
def test_a_quantised_model_is_captured_and_its_image_axis_is_assumed():
    torch.manual_seed(0)
    quantised = torch.ao.quantization.quantize_dynamic(vit(), {nn.Linear}, dtype=torch.qint8)
    capturing = ap.capture(quantised, X)
    found = torch.cat([m.values for m in capturing])
    torch.testing.assert_close(found, maps_of(vit()), rtol=0, atol=1e-2)
    assert not capturing.certificate.located.images_proved


@pytest.mark.parametrize("scale", [3.0, lambda pixels: torch.full((len(pixels), 1, 1, 1), 3.0)])
def test_further_arguments_reach_every_forward_pass(scale):
    found = maps_of(Scaled(), inputs={"scale": scale}, batch_size=3)
    torch.testing.assert_close(found, maps_of(vit(), 3 * X), rtol=0, atol=1e-6)


def test_the_model_is_left_without_hooks():
    model = Scaled()
    maps_of(model, inputs={"scale": 3.0})
    assert not model._forward_pre_hooks


def with_traced():
    return nn.Sequential(torch.jit.trace(vit(), X), nn.Linear(10, 3)).eval()


def partly_meta():
    model = vit()
    model.blocks[1].to("meta")
    return model


class Broken(nn.Module):
    def __init__(self, error):
        super().__init__()
        self.vit, self.error = vit(), error

    def forward(self, x):
        raise self.error


class ByName(nn.Module):
    def forward(self, *, pixel_values):
        return pixel_values


REFUSED = {
    "pixels by name": (ByName, InputError, r"wrap it in a module whose forward\(x\) hands x on by name"),
    "missing argument": (Scaled, InputError, r"missing 1 required .*'scale'.* inputs=\{name: value\}"),
    "a number of images": (
        lambda: torch.export.export(vit(), (X,)).module(),
        InputError,
        "exported for images of another number",
    ),
    "a traced part": (with_traced, CaptureError, "its 0 is TorchScript"),
    "a meta part": (partly_meta, CaptureError, "lacks weights"),
    "a file": (lambda: "my.pth", CaptureError, r"got str 'my.pth'; ap.load_model\(\.\.\.\) opens names and files"),
    "a function": (lambda: lambda x: x, CaptureError, r"a model is a torch\.nn\.Module, got function"),
    "a program": (lambda: torch.export.export(vit(), (X,)), CaptureError, r"pass \.module\(\)"),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore")  # of PyTorch, that tracing is old
def test_what_cannot_be_captured_is_refused_in_one_line(name):
    make, kind, reason = REFUSED[name]
    model = make()
    with pytest.raises(kind, match=reason) as error:
        next(iter(ap.capture(model, X)))
    assert isinstance(error.value, AttnprobeError) and "\n" not in str(error.value)


@pytest.mark.parametrize("error", [KeyError("a"), TypeError("unsupported operand"), RuntimeError("broken")])
def test_an_error_of_the_models_own_is_left_as_it_is(error):
    with pytest.raises(type(error)) as raised:
        next(iter(ap.capture(Broken(error), X)))
    assert raised.value is error


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
def test_a_sharded_model_has_the_maps_of_the_whole_one():
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = vit()
    wanted = maps_of(model)
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        torch.testing.assert_close(maps_of(model), wanted, rtol=0, atol=1e-6)
    finally:
        torch.distributed.destroy_process_group()


TENSOR_PARALLEL = """
import torch, sys
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from transformers import ViTConfig, ViTModel
import attnprobe as ap
from attnprobe.core.errors import CaptureError

dist.init_process_group("gloo")
config = ViTConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=32,
                   patch_size=8)
images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))

def model():
    torch.manual_seed(0)
    return ViTModel(config, add_pooling_layer=False).eval()

def heads(model):
    try:
        return next(iter(ap.capture(model, images))).values.shape[2]
    except CaptureError as error:
        return str(error)

mesh = init_device_mesh("cpu", (2,))
split = model()
kinds = {"q_proj": ColwiseParallel, "k_proj": ColwiseParallel, "v_proj": ColwiseParallel, "o_proj": RowwiseParallel}
plan = {name: kinds[name.rpartition(".")[2]]() for name, _ in split.named_modules() if name.rpartition(".")[2] in kinds}
parallelize_module(split, mesh, plan)
sharded = model()
fully_shard(sharded, mesh=mesh)
found = heads(split), heads(sharded), heads(model())
if dist.get_rank() == 0:
    print(*found, sep="\\n")
dist.destroy_process_group()
"""


@pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
def test_a_process_with_some_of_the_heads_does_not_pass_them_off_as_all(tmp_path):
    (tmp_path / "split.py").write_text(TENSOR_PARALLEL)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*command, str(tmp_path / "split.py")], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    refused, *heads = sorted(done.stdout.splitlines(), key=len, reverse=True)  # two processes print
    assert "is tensor parallel (layers.0" in refused and "some of the heads" in refused
    assert heads == ["4", "4"]
