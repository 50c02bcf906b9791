import pytest
import torch

from attnprobe.core.images import ImageSource, InputSpec
from attnprobe.data.device_resident import DeviceResident, may_reside, shown_whole


def resident(spec, n=7, channels=3, size=(8, 8), **options):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, channels, *size), generator=generator, dtype=torch.uint8)
    ids = [f"r{k}" for k in range(n)]
    described = {"ids": ids, "class_names": ["a", "b"], "fingerprint": "f", **options}
    return DeviceResident("r", spec, pixels=pixels, labels=torch.arange(n) % 2, **described), pixels


def test_at_its_own_size_an_image_is_its_bytes_normalised():
    spec = InputSpec((8, 8), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    source, pixels = resident(spec)
    assert isinstance(source, ImageSource)
    (batch,) = source.batches(99)
    for channel in range(3):
        expected = (pixels[:, channel].float() / 255 - spec.mean[channel]) / spec.std[channel]
        assert torch.equal(batch.pixels[:, channel], expected)
    assert batch.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]


def test_one_channel_becomes_three_equal_ones():
    source, pixels = resident(InputSpec((8, 8), mean=(0, 0, 0), std=(1, 1, 1)), channels=1)
    (batch,) = source.batches(99)
    assert torch.equal(batch.pixels, (pixels.float() / 255).expand(-1, 3, -1, -1))


def test_a_set_may_be_shown_in_its_own_way():
    spec = InputSpec((3, 5), mean=(0.5,) * 3, std=(2,) * 3)
    source, pixels = resident(spec, show=lambda pixels, spec: pixels[..., : spec.size[0], : spec.size[1]] / 510)
    (batch,) = source.batches(99)
    assert torch.equal(batch.pixels, (pixels[..., :3, :5] / 510 - 0.5) / 2)


@pytest.mark.parametrize(
    ("shape", "spec", "resident_bytes", "may"),
    [
        ((10, 3, 32, 32), InputSpec((32, 32)), 30720, True),
        ((10, 3, 32, 32), InputSpec((32, 32)), 30719, False),  # too large
        ((10, 3, 32, 32), InputSpec((224, 224), crop_pct=0.9), 30720, True),
        ((10, 3, 32, 32), InputSpec((31, 31)), 30720, False),  # a training crop would lose detail
        ((10, 3, 32, 31), InputSpec((32, 32)), 30720, False),  # not square
        ((10, 3, 32, 32), InputSpec((32, 40)), 30720, False),  # input not square
        ((10, 1, 28, 28), InputSpec((28, 28)), 7840, True),
        ((10, 1, 28, 28), InputSpec((28, 28), crop_pct=1.1), 7840, False),  # timm pads
    ],
)
def test_small_square_pictures_that_fit_may_reside(shape, spec, resident_bytes, may):
    assert may_reside(shape, spec, resident_bytes) is may


def test_only_a_training_split_is_shown_to_its_borders():
    spec = InputSpec((64, 64), crop_pct=0.8)
    assert shown_whole(spec, "train") == InputSpec((64, 64), crop_pct=1.0)
    assert shown_whole(spec, "val") is spec and shown_whole(spec, "test") is spec


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (5, 5)])
def test_pixels_do_not_depend_on_the_batch(size, collect):
    source, _ = resident(InputSpec(size))
    whole, single = collect(source, 7), collect(source, 1, order=[6, 2, 0, 1, 3, 5, 4])
    assert list(single) == ["r6", "r2", "r0", "r1", "r3", "r5", "r4"]
    for name, (pixels, label) in whole.items():
        assert torch.equal(single[name][0], pixels) and single[name][1] == label


@pytest.mark.gpu
def test_a_gpu_shows_what_the_cpu_shows(collect, gpu):
    source, _ = resident(InputSpec((16, 16), crop_pct=0.9))
    here, there = collect(source), collect(source, device=gpu)
    for name, (pixels, _label) in here.items():
        torch.testing.assert_close(there[name][0].cpu(), pixels, atol=1e-6, rtol=0)  # bytes are equal
