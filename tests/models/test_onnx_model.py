"""ONNX files as models: the same maps as the PyTorch model they were exported from, or a refusal with the reason."""

import io
import warnings

import pytest
import timm
import torch
from torch import nn

import attnprobe as ap
from attnprobe.core.errors import CaptureError, InputError

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from attnprobe.models.onnx_model import OnnxModel  # noqa: E402

PIXELS = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def small_vit(**options):
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", depth=3, img_size=64, num_classes=5, **options).eval()


def exported(model, path, pixels=PIXELS[:1], **options):
    """The file of a model; by the tracing exporter, whose files need no further package."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, (pixels,), buffer, dynamo=False, **options)
    path.write_bytes(buffer.getvalue())
    return path


def joined(maps, site="weights"):
    return torch.cat([m.values for m in maps if m.site == site])


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return exported(small_vit(), tmp_path_factory.mktemp("onnx") / "vit.onnx")


def test_an_exported_model_has_the_maps_and_the_output_of_the_original(file):
    ours, theirs = OnnxModel(file).eval(), small_vit()
    torch.testing.assert_close(ours(PIXELS), theirs(PIXELS), rtol=1e-4, atol=1e-5)
    found, wanted = list(ap.capture(ours, PIXELS, "weights")), list(ap.capture(theirs, PIXELS, "weights"))
    torch.testing.assert_close(joined(found), joined(wanted), rtol=0, atol=1e-5)
    assert found[0].layers == wanted[0].layers == ("blocks.0.attn", "blocks.1.attn", "blocks.2.attn")


def test_a_batch_of_any_size_can_be_exported(tmp_path):
    axes = {"input_names": ["x"], "dynamic_axes": {"x": {0: "n"}}}
    model = OnnxModel(exported(small_vit(), tmp_path / "vit.onnx", PIXELS[:2], **axes)).eval()
    assert model.batch == 0
    torch.testing.assert_close(model(PIXELS), small_vit()(PIXELS), rtol=1e-4, atol=1e-5)


def test_maps_changed_after_the_softmax_are_told_apart(tmp_path):
    class Scaled(timm.layers.Attention):
        def forward(self, x, attn_mask=None, is_causal=False):
            q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
            weights = (q * self.scale @ k.transpose(-2, -1)).softmax(-1)
            return self.proj(((2 * weights - 1 / weights.shape[-1]) @ v).transpose(1, 2).flatten(2))

    model = small_vit()
    for block in model.blocks:
        block.attn.__class__ = Scaled
    maps = list(ap.capture(OnnxModel(exported(model, tmp_path / "x.onnx")).eval(), PIXELS, ("weights", "effective")))
    weights, effective = joined(maps), joined(maps, "effective")
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), rtol=0, atol=1e-5)
    torch.testing.assert_close(effective, 2 * weights - 1 / 17, rtol=0, atol=1e-5)


def attention_graph(op="Attention", domain="", **attributes):
    """One operator over queries, keys and values that are the pixels."""
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    node = helper.make_node(op, ["x", "x", "x"], ["y"], domain=domain, **attributes)
    given = helper.make_tensor_value_info("x", kind, [1, 2, 5, 4])
    graph = helper.make_graph([node], "g", [given], [helper.make_tensor_value_info("y", kind, None)])
    imports = [helper.make_opsetid("", 23), *([helper.make_opsetid(domain, 1)] if domain else [])]
    return helper.make_model(graph, opset_imports=imports, ir_version=10)


def test_the_standard_operator_shows_its_softmax(tmp_path):
    path = tmp_path / "standard.onnx"
    onnx.save(attention_graph(scale=0.5), path)
    x = torch.randn(3, 2, 5, 4, generator=torch.Generator().manual_seed(1))
    model = OnnxModel(path).eval()
    with torch.no_grad(), ap.record(model, "weights") as recorder:
        output = model(x)
        (maps,) = recorder.take()
    wanted = (0.5 * x @ x.mT).softmax(-1)
    torch.testing.assert_close(maps.values[:, 0], wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(output, wanted @ x, rtol=0, atol=1e-5)


def test_operators_of_a_vendor_are_refused_by_name(tmp_path):
    path = tmp_path / "fused.onnx"
    onnx.save(attention_graph("MultiHeadAttention", "com.microsoft", num_heads=2), path)
    with pytest.raises(CaptureError, match=r"vendor operators .* MultiHeadAttention \(1\)"):
        OnnxModel(path)


def test_a_graph_without_attention_says_so(tmp_path):
    path = exported(nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.Flatten(), nn.Softmax(-1)), tmp_path / "no.onnx")
    with pytest.raises(CaptureError, match="no attention in the graph"):
        OnnxModel(path)


@pytest.mark.parametrize("content", [b"", b"not a protocol buffer at all", b"\x08\x07" * 40])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "x.onnx"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cannot be read as an ONNX model"):
        OnnxModel(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.onnx is not a file"):
        OnnxModel(tmp_path / "none.onnx")


def test_weights_outside_of_the_folder_are_not_read(tmp_path, file):
    model = onnx.load(file)
    tensor = next(t for t in model.graph.initializer if t.raw_data)
    (tmp_path / "secret.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret.bin")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "x.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="cannot be read as an ONNX model"):
        OnnxModel(folder / "x.onnx")
