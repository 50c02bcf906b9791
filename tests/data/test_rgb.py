import numpy as np
import pytest
import torch
from PIL import Image

from attnprobe.core.errors import InputError
from attnprobe.core.images import InputSpec
from attnprobe.data.image_files import Reading, load_files
from attnprobe.data.pillow import check
from attnprobe.data.rgb import as_rgb

RAMP = np.tile(np.linspace(0, 255, 64).astype(np.uint8), (64, 1))
PLAIN = InputSpec((64, 64), (0, 0, 0), (1, 1, 1))


def levels(file):
    """The first channel of a file as it is shown."""
    with Image.open(file) as image:
        return np.asarray(as_rgb(image))[..., 0]


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.pgm"])
def test_16_bits_are_scaled_from_65535_to_255(tmp_path, name):
    deep = RAMP.astype(np.uint16) * 257
    Image.fromarray(deep).save(tmp_path / name)
    assert np.array_equal(levels(tmp_path / name), RAMP)
    assert check(str(tmp_path / name)) == ""


def test_16_bits_between_two_levels_are_rounded_to_the_nearest(tmp_path):
    deep = np.arange(65_536, dtype=np.uint16).reshape(256, 256)
    Image.fromarray(deep).save(tmp_path / "a.png")
    nearest = [int(value * 255 / 65_535 + 0.5) for value in range(65_536)]
    assert levels(tmp_path / "a.png").ravel().tolist() == nearest


def test_a_declared_range_of_12_bits_is_the_range(tmp_path):
    Image.fromarray(RAMP.astype(np.uint16) * 16).save(tmp_path / "a.tif", tiffinfo={281: 4095})
    assert np.array_equal(levels(tmp_path / "a.tif"), np.round(RAMP.astype(float) * 16 / 4095 * 255))


def test_a_tiff_file_whose_zero_is_white_is_inverted(tmp_path):
    Image.fromarray(RAMP.astype(np.uint16) * 257).save(tmp_path / "a.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "a.tif") as image:
        assert image.tag_v2[262] == 0 and image.mode == "I;16"
    assert np.array_equal(levels(tmp_path / "a.tif"), 255 - RAMP)


def test_floats_from_0_to_1_are_scaled_to_255(tmp_path):
    Image.fromarray(RAMP.astype(np.float32) / 255).save(tmp_path / "a.tif")
    assert np.array_equal(levels(tmp_path / "a.tif"), RAMP)


@pytest.mark.parametrize(
    ("values", "why"),
    [
        (RAMP.astype(np.float32), "floats range from 0 to 255, expected 0"),
        (RAMP.astype(np.float32) / 255 - 0.5, "floats range from -0.5 to 0.5"),
        (np.full((64, 64), np.nan, np.float32), "floats range from nan"),
        (RAMP.astype(np.int32) * 257, "32-bit integers .up to 65535. do not say which value is white"),
        (RAMP.astype(np.uint16) * 16, "16-bit values end at 4080 of 65535 and may be of 12 bits"),
    ],
)
def test_a_range_that_the_file_does_not_say_is_refused_by_name(tmp_path, values, why):
    Image.fromarray(values).save(tmp_path / "deep.tif")
    with pytest.raises(InputError, match=f"'deep.tif': its {why}"):
        load_files(str(tmp_path), spec=PLAIN)


@pytest.mark.parametrize("ending", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_exif_orientation_is_applied(tmp_path, ending, orientation):
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40  # blocks of 16 x 16 that no compression merges
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: upright.T[::-1],
        7: upright.T[::-1, ::-1],
        8: upright.T[:, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    blocks = np.ascontiguousarray(np.kron(stored, np.ones((16, 16), np.uint8)))
    options = {"lossless": True} if ending == "webp" else {"quality": 95} if ending == "jpg" else {}
    Image.fromarray(blocks).convert("RGB").save(tmp_path / f"a.{ending}", exif=exif, **options)
    shown = levels(tmp_path / f"a.{ending}").astype(int)
    assert shown.shape == (32, 48)
    assert np.abs(shown - np.kron(upright, np.ones((16, 16), int))).max() <= 3


@pytest.mark.parametrize("resident_bytes", [0, 2 << 30])
def test_transparent_images_are_composited_on_white_and_said_to_be(tmp_path, collect, resident_bytes):
    pixels = np.zeros((64, 64, 4), np.uint8)
    pixels[..., 0], pixels[..., 3] = 200, np.arange(64) * 4
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with pytest.warns(UserWarning, match="1 of 1 images have an alpha channel and are shown on white"):
        source = load_files(str(tmp_path), spec=PLAIN, reading=Reading(resident_bytes=resident_bytes))
    shown = collect(source)["a.png"][0]
    alpha = torch.arange(64) * 4 / 255
    for channel, colour in enumerate((200, 0, 0)):
        expected = (alpha * colour + (1 - alpha) * 255) / 255
        assert (shown[channel] - expected).abs().max() <= 1.01 / 255


def test_a_palette_with_a_transparent_colour_is_composited_on_white(tmp_path):
    image = Image.fromarray((RAMP > 127).astype(np.uint8))
    palette = image.convert("P")
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.save(tmp_path / "a.png", transparency=0)
    assert sorted(np.unique(levels(tmp_path / "a.png"))) == [200, 255]


def test_further_frames_are_said_to_be_left_out(tmp_path):
    first, second = Image.fromarray(RAMP), Image.fromarray(255 - RAMP)
    first.save(tmp_path / "a.gif", save_all=True, append_images=[second])
    with pytest.warns(UserWarning, match="1 of 1 images hold several frames, of which the first is used"):
        source = load_files(str(tmp_path), spec=PLAIN)
    assert torch.equal((next(iter(source.batches(1))).pixels[0, 0] * 255).round().byte(), torch.from_numpy(RAMP))
