import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from attnprobe.core.errors import InputError
from attnprobe.data.pillow import MAX_PIXELS, check, of_each, open_image, some_unreadable

FORMATS = ("png", "jpg", "webp", "bmp", "gif", "tiff")


def encode(ending):
    buffer = io.BytesIO()
    noise = np.random.RandomState(0).randint(0, 256, (40, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, {"jpg": "jpeg"}.get(ending, ending))
    return buffer.getvalue()


def bomb(path, side=9_000):
    """A valid PNG of some hundred kilobytes that decodes to side x side pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes((side // 8 + 2) * side))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("ending", FORMATS)
def test_a_whole_image_passes(tmp_path, ending):
    file = tmp_path / f"a.{ending}"
    file.write_bytes(encode(ending))
    assert check(str(file)) == ""


@pytest.mark.promise("images-bad")
@pytest.mark.parametrize("ending", FORMATS)
def test_a_truncated_image_is_found_wherever_it_is_cut(tmp_path, ending, record_property):
    whole = encode(ending)
    file = tmp_path / f"a.{ending}"
    last = len(whole) - (40 if ending in ("png", "tiff", "gif") else 4)  # what ends a file may hold no pixels
    for cut in np.linspace(0, last, 25).astype(int):
        file.write_bytes(whole[:cut])
        assert check(str(file)), f"{cut} of {len(whole)} bytes"
    record_property("tried", 25)


@pytest.mark.parametrize("ending", FORMATS)
def test_whatever_bytes_change_the_answer_is_a_line_and_not_an_exception(tmp_path, ending):
    whole, random = encode(ending), np.random.RandomState(1)
    file = tmp_path / f"a.{ending}"
    for _ in range(60):
        damaged = bytearray(whole)
        for place in random.randint(0, len(whole), 4):
            damaged[place] = random.randint(256)
        file.write_bytes(damaged)
        assert "\n" not in check(str(file))


@pytest.mark.promise("images-bad")
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path):
    file = bomb(tmp_path / "bomb.png")
    assert MAX_PIXELS < 9_000**2 and file.stat().st_size < 100_000
    assert check(str(file)) == "9000 x 9000 pixels, more than 64 million"


@pytest.mark.parametrize("side", [10_000, 20_000])
def test_bombs_that_pillow_knows_are_refused_as_well(tmp_path, side):
    assert "pixels" in of_each(check, [str(bomb(tmp_path / "bomb.png", side))])[0]


def test_reasons_are_told_in_words(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("hello")
    os.mkfifo(tmp_path / "pipe.png")
    names = ("empty.png", "text.png", "pipe.png", "missing.png", ".")
    assert of_each(check, [str(tmp_path / name) for name in names], threads=2) == [
        "empty file",
        "not an image Pillow can read",
        "not a regular file",
        "no such file",
        "not a regular file",
    ]


def test_open_image_does_not_decode(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(encode("png")[:200])
    with open_image(str(file)) as image:
        assert image.size == (50, 40)
    with pytest.raises(InputError, match="empty"):
        (tmp_path / "b.png").touch()
        open_image(str(tmp_path / "b.png"))


def test_the_first_five_are_named_and_all_are_counted():
    said = some_unreadable([(f"{k}.png", "empty file") for k in range(7)], 30)
    assert said.startswith("7 of 30 images cannot be read ('0.png': empty file; ")
    assert "4.png" in said and "5.png" not in said and said.endswith("; ...)")
