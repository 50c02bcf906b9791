"""Models of transformers see the pixels that their image processor makes, whatever it does to them."""

import warnings

import numpy as np
import pytest
import torch
import torchvision
import transformers
from PIL import Image

from attnprobe.core.images import InputSpec
from attnprobe.data import load_images
from attnprobe.models import build_model, input_spec

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture
def photos(tmp_path):
    """Three images of 60 x 80 and 80 x 60, smooth enough for two libraries' resizing to agree, and rather red."""
    (tmp_path / "photos").mkdir()
    for k in range(3):
        noise = np.random.default_rng(k).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        noise[..., 0] = 220
        size = (80, 60) if k % 2 else (60, 80)
        Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).save(tmp_path / f"photos/{k}.png")
    return tmp_path / "photos"


def saved(folder, processor, side=32):
    config = transformers.ViTConfig(**TINY, image_size=side, patch_size=16)
    transformers.ViTForImageClassification(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return build_model(f"hf:{folder}", pretrained=True)


PROCESSORS = {
    "squash": lambda: transformers.ViTImageProcessor(size={"height": 32, "width": 32}),
    "rectangle": lambda: transformers.ViTImageProcessor(size={"height": 32, "width": 48}),
    "no normalisation": lambda: transformers.ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False),
    "crop": lambda: transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
    "crop beyond the edge": lambda: transformers.CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 32, "width": 32}
    ),
    "blue first": lambda: transformers.MobileViTImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}
    ),
    "another scale": lambda: transformers.ViTImageProcessor(size={"height": 32, "width": 32}, rescale_factor=1 / 127.5),
    "mean of one channel each": lambda: transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, image_mean=[0.1, 0.2, 0.3], image_std=[0.2, 0.3, 0.4]
    ),
    "LeViT": lambda: transformers.LevitImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}
    ),
    "EfficientNet": lambda: transformers.EfficientNetImageProcessor(size={"height": 32, "width": 32}),
    "EfficientNet, offset": lambda: transformers.EfficientNetImageProcessor(
        size={"height": 32, "width": 32}, rescale_offset=True, rescale_factor=1 / 127.5
    ),
    "EfficientNet, no top": lambda: transformers.EfficientNetImageProcessor(
        size={"height": 32, "width": 32}, include_top=False, rescale_offset=True
    ),
    "ConvNeXt, small": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 32}, crop_pct=0.8),
    "ConvNeXt, large": lambda: transformers.ConvNextImageProcessor(size={"shortest_edge": 384}),
}


@pytest.mark.parametrize("kind", PROCESSORS)
def test_the_pixels_are_the_processors(tmp_path, photos, kind):
    processor = PROCESSORS[kind]()
    spec = input_spec(saved(tmp_path / "model", processor))
    ours = next(iter(load_images(str(photos), spec=spec).batches(3))).pixels
    images = [Image.open(photos / f"{k}.png").convert("RGB") for k in range(3)]
    theirs = processor(images, return_tensors="pt")["pixel_values"]
    assert ours.shape == theirs.shape
    step = max(1 / 255 / std for std in spec.std)  # one grey level; resizing rounds in another order
    assert (ours - theirs).abs().max() <= 2.01 * step
    assert (ours - theirs).abs().mean() <= 0.3 * step


def test_pixels_that_are_not_rescaled_range_to_255(tmp_path, photos):
    processor = transformers.ViTImageProcessor(
        size={"height": 32, "width": 32}, do_rescale=False, do_normalize=True, image_mean=[10] * 3, image_std=[2] * 3
    )
    spec = input_spec(saved(tmp_path / "model", processor))
    ours = next(iter(load_images(str(photos), spec=spec).batches(3))).pixels
    theirs = processor([Image.open(photos / f"{k}.png") for k in range(3)], return_tensors="pt")["pixel_values"]
    assert (ours - theirs).abs().max() <= 0.5 * 2.01 and theirs.max() > 90  # half a unit is one grey level


def test_the_inverse_of_the_processors_pixels_is_the_image(tmp_path, photos):
    spec = input_spec(saved(tmp_path / "model", PROCESSORS["blue first"]()))
    pixels = torch.rand(2, 3, 4, 4)
    assert torch.allclose(spec.restore(spec.normalise(pixels)), pixels, atol=1e-6)
    assert torch.equal(spec.normalise(pixels)[:, 0], pixels[:, 2])


def test_a_processor_of_many_sizes_is_named(tmp_path):
    processor = transformers.DetrImageProcessor(size={"shortest_edge": 40, "longest_edge": 80})
    with pytest.warns(UserWarning, match="resized and cropped in the middle to 32 x 32"):
        model = saved(tmp_path / "model", processor)
    assert input_spec(model).size == (32, 32)


SQUARE = {"height": 32, "width": 32}
OTHERS = {
    "a crop one pixel aside": lambda: transformers.PoolFormerImageProcessor(
        size={"shortest_edge": 32}, crop_size=SQUARE
    ),
    "padded": lambda: transformers.Owlv2ImageProcessor(size=SQUARE),
    "a thumbnail": lambda: transformers.DonutImageProcessor(size=SQUARE),
    "of the picture's shape": lambda: transformers.DPTImageProcessor(
        size=SQUARE, keep_aspect_ratio=True, ensure_multiple_of=16
    ),
    "of the picture's shape, padded": lambda: transformers.ZoeDepthImageProcessor(size=SQUARE),
    "cropped first": lambda: transformers.PerceiverImageProcessor(size=SQUARE, crop_size={"height": 48, "width": 48}),
    "of videos": lambda: transformers.VivitImageProcessor(),
    "of trimaps too": lambda: transformers.VitMatteImageProcessor(),
    "too large to try": lambda: transformers.ViTImageProcessor(size={"height": 10**6, "width": 10**6}),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_processor_that_makes_other_pixels_is_named(tmp_path, kind):
    said = "maps are of other pixels than those it prepares|does not make images of one size"
    with pytest.warns(UserWarning, match=said) as warned:
        saved(tmp_path / "model", OTHERS[kind]())
    assert sum("image processor" in str(one.message) for one in warned) == 1


@pytest.mark.parametrize("kind", PROCESSORS)
def test_a_processor_whose_pixels_are_made_is_not_warned_of(tmp_path, kind):
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        saved(tmp_path / "model", PROCESSORS[kind]())
    assert not [one for one in warned if "image processor" in str(one.message)]


def test_a_model_that_the_user_opened_has_the_processor_of_its_folder(tmp_path):
    saved(tmp_path / "model", PROCESSORS["mean of one channel each"]())
    by_hand = transformers.ViTForImageClassification.from_pretrained(tmp_path / "model")
    assert (input_spec(by_hand).size, input_spec(by_hand).mean) == ((32, 32), (0.1, 0.2, 0.3))


def test_a_model_built_by_hand_has_the_size_it_was_built_for():
    config = transformers.ViTConfig(**TINY, image_size=[48, 64], patch_size=16)
    assert input_spec(transformers.ViTModel(config)).size == (48, 64)
    assert input_spec(torchvision.models.VisionTransformer(64, 16, 1, 2, 32, 64)).size == (64, 64)


def test_a_single_mean_stands_for_grey():
    spec, pixels = InputSpec((2, 2), (0.5,), (0.25,)), torch.rand(1, 3, 2, 2)
    grey = 0.299 * pixels[:, 0] + 0.587 * pixels[:, 1] + 0.114 * pixels[:, 2]
    assert torch.allclose(spec.normalise(pixels)[:, 0], (grey - 0.5) / 0.25, atol=1e-6)
    assert torch.allclose(spec.restore(spec.normalise(pixels)), grey[:, None].expand(-1, 3, -1, -1), atol=1e-6)
