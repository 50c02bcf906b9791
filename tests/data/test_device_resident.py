import numpy as np
import pytest
import torch
from PIL import Image

from attnprobe.core.images import ImageSource, InputSpec
from attnprobe.data.device_resident import DeviceResident, resize


def resident(spec, n=7, channels=3, size=(8, 8), white=255):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, white + 1, (n, channels, *size), generator=generator, dtype=torch.uint8)
    ids = [f"r{k}" for k in range(n)]
    described = {"ids": ids, "class_names": ["a", "b"], "fingerprint": "f"}
    return DeviceResident("r", spec, pixels=pixels, labels=torch.arange(n) % 2, white=white, **described), pixels


def test_at_its_own_size_an_image_is_its_bytes_normalised():
    spec = InputSpec((8, 8), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    source, pixels = resident(spec)
    assert isinstance(source, ImageSource)
    (batch,) = source.batches(99)
    for channel in range(3):
        expected = (pixels[:, channel].float() / 255 - spec.mean[channel]) / spec.std[channel]
        assert torch.equal(batch.pixels[:, channel], expected)
    assert batch.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]


def test_one_channel_becomes_three_equal_ones_and_white_becomes_one():
    source, pixels = resident(InputSpec((8, 8), mean=(0, 0, 0), std=(1, 1, 1)), channels=1, white=16)
    (batch,) = source.batches(99)
    assert torch.equal(batch.pixels, (pixels.float() / 16).expand(-1, 3, -1, -1))


@pytest.mark.parametrize("size", [(20, 24), (5, 6)])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_resizing_is_pillows_to_a_few_grey_values(size, mode):
    grey = Image.fromarray(np.random.RandomState(0).randint(0, 256, (4, 4), dtype=np.uint8))
    grey = grey.resize((11, 9), Image.Resampling.BICUBIC)
    ours = resize(torch.from_numpy(np.array(grey))[None, None].float() / 255, size, mode)[0, 0] * 255
    theirs = torch.from_numpy(np.array(grey.resize(size[::-1], Image.Resampling[mode.upper()]))).float()
    # Pillow's cubic has a = -0.5; torch has that too when it shrinks, and -0.75 when it enlarges.
    allowed = 8 if mode == "bicubic" and size == (20, 24) else 1.01
    assert (ours - theirs).abs().max() <= allowed
    assert ours.min() >= 0 and ours.max() <= 255


@pytest.mark.parametrize("size", [(8, 8), (16, 12), (3, 5)])
def test_pixels_do_not_depend_on_the_batch(size, collect):
    source, _ = resident(InputSpec(size))
    whole, single = collect(source, 7), collect(source, 1, order=[6, 2, 0, 1, 3, 5, 4])
    assert list(single) == ["r6", "r2", "r0", "r1", "r3", "r5", "r4"]
    for name, (pixels, label) in whole.items():
        assert torch.equal(single[name][0], pixels) and single[name][1] == label


@pytest.mark.gpu
def test_cuda_shows_what_the_cpu_shows(collect):
    source, _ = resident(InputSpec((16, 12)))
    here, there = collect(source), collect(source, device="cuda")
    for name, (pixels, _label) in here.items():
        torch.testing.assert_close(there[name][0].cpu(), pixels)
