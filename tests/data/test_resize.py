"""Every filter, size and crop against timm's own transform of single pictures."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from timm.data import create_transform
from torchvision.transforms.functional import to_pil_image

from attnprobe.core.images import InputSpec
from attnprobe.data.resize import as_evaluated, taps

FILTERS = ("bicubic", "bilinear", "lanczos", "hamming", "box", "nearest")


def pictures(n, side, seed=0, channels=3):
    """Noise and black and white edges, which overshoot most."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randint(0, 256, (n, channels, side, side), generator=generator, dtype=torch.uint8)
    return torch.cat([noise, (noise > 127) * torch.tensor(255, dtype=torch.uint8)])


def by_timm(pixels, spec):
    settings = {"interpolation": spec.interpolation, "crop_pct": spec.crop_pct}
    transform = create_transform((3, *spec.size), mean=(0, 0, 0), std=(1, 1, 1), **settings)
    return torch.stack([transform(to_pil_image(picture)) for picture in pixels])


@pytest.mark.parametrize("interpolation", FILTERS)
@pytest.mark.parametrize(
    ("stored", "side", "crop_pct"), [(32, 224, 0.9), (32, 224, 1.0), (64, 96, 0.875), (28, 28, 0.95), (33, 17, 0.8)]
)
def test_bytes_are_timms(stored, side, crop_pct, interpolation):
    spec, pixels = InputSpec((side, side), interpolation=interpolation, crop_pct=crop_pct), pictures(2, stored)
    assert torch.equal(as_evaluated(pixels, spec), by_timm(pixels, spec))


@given(
    stored=st.integers(1, 40),
    side=st.integers(1, 70),
    crop_pct=st.floats(0.3, 1.0),
    interpolation=st.sampled_from(FILTERS),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=60, deadline=None)
def test_bytes_are_timms_at_any_size(stored, side, crop_pct, interpolation, seed):
    spec = InputSpec((side, side), interpolation=interpolation, crop_pct=crop_pct)
    pixels = pictures(1, stored, seed)
    assert torch.equal(as_evaluated(pixels, spec), by_timm(pixels, spec))


def test_the_stored_size_is_only_cropped():
    pixels = pictures(1, 20)
    spec = InputSpec((16, 16), crop_pct=0.8)
    assert torch.equal(as_evaluated(pixels, spec) * 255, pixels[..., 2:18, 2:18].float())


def test_weights_of_an_output_sum_to_one_and_come_from_near_inputs():
    places, weights = taps(32, 224, 0, 224, "bicubic")
    assert len(places) == 4 and weights.dtype == torch.int32
    assert (weights.sum(0) - (1 << 22)).abs().max() <= 2
    centre = (torch.arange(224) + 0.5) * 32 / 224
    assert ((places + 0.5 - centre)[weights != 0].abs() <= 2).all()


def test_autocast_changes_nothing():
    pixels, spec = pictures(2, 32), InputSpec((48, 48))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(as_evaluated(pixels, spec), by_timm(pixels, spec))
