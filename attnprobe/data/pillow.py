"""Which files are images that can be read to the end?"""

import os
import stat
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import BinaryIO

import numpy as np
import torch
from PIL import EpsImagePlugin, Image, UnidentifiedImageError
from torch import Tensor

from attnprobe.core.errors import InputError

MAX_PIXELS = 64_000_000
"""192 MB when decoded. Pillow's own limit (179 Mpx) would let a file of some kilobytes take 540 MB."""


FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Those that are tried, whatever a file's ending: of others Pillow would start Ghostscript for PostScript."""


def open_image(file: str | BinaryIO) -> Image.Image:
    """Open an image without decoding it.

    Raises:
        InputError: not a regular file, empty, or of more than `MAX_PIXELS`.
        OSError, SyntaxError, ValueError ...: whatever else Pillow raises; see `why_unreadable`.
    """
    if isinstance(file, str):
        status = os.stat(file)
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for ever
            raise InputError("not a regular file")
        if status.st_size == 0:
            raise InputError("empty file")
    image = Image.open(file, formats=FORMATS)
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        image.close()
        raise InputError(f"{size} pixels, more than {MAX_PIXELS / 1e6:.0f} million")
    return image


def why_unreadable(error: Exception) -> str:
    """An exception from opening or decoding an image, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = (str(error).strip().splitlines() or [""])[0]
    return said if said and isinstance(error, InputError | OSError) else f"{type(error).__name__} {said}".strip()


@contextmanager
def without_ghostscript() -> Iterator[None]:
    """No image is handed to Ghostscript, where a library opens files by whatever format they hold."""
    before, EpsImagePlugin.gs_binary = EpsImagePlugin.gs_binary, False
    try:
        yield
    finally:
        EpsImagePlugin.gs_binary = before


@contextmanager
def pillow_quiet() -> Iterator[None]:
    """Hide Pillow's warnings (odd EXIF data, palettes): an image is readable or not. Enter from one thread only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def check(file: str) -> str:
    """Decode the whole file; "" if that works, else why not. JPEG is decoded at 1/8 of its size, in half the time."""
    try:
        with open_image(file) as image:
            image.draft(None, (1, 1))
            image.load()
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error and others
        return why_unreadable(error)
    return ""


def pre_scan(files: Iterable[str], threads: int = 1) -> list[str]:
    """`check` of every file, in order. Pillow decodes outside the interpreter lock, so threads help."""
    with pillow_quiet(), ThreadPoolExecutor(max(1, threads)) as pool:
        return list(pool.map(check, files))


def one_size(files: Iterable[str], at_most: tuple[int, int]) -> tuple[int, int] | None:
    """Rows and columns of all images that can be opened; None at the first that differs or exceeds `at_most`."""
    size = None
    with pillow_quiet():
        for file in files:
            try:
                with open_image(file) as image:
                    rows, cols = image.height, image.width
            except Exception:  # whoever decodes it will say why
                continue
            if (size and size != (rows, cols)) or rows > at_most[0] or cols > at_most[1]:
                return None
            size = rows, cols
    return size


def decode_all(files: Sequence[str], size: tuple[int, int], threads: int = 1) -> tuple[Tensor, list[str]]:
    """All images, [image, 3, row, col], uint8, and for each "", or why there are no pixels (then they are 0)."""
    pixels = np.zeros((len(files), 3, *size), dtype=np.uint8)

    def decode(k: int) -> str:
        try:
            with open_image(files[k]) as image:
                pixels[k] = np.asarray(image.convert("RGB")).transpose(2, 0, 1)
        except Exception as error:
            return why_unreadable(error)
        return ""

    with pillow_quiet(), ThreadPoolExecutor(max(1, threads)) as pool:
        reasons = list(pool.map(decode, range(len(files))))
    return torch.from_numpy(pixels), reasons


def some_unreadable(found: list[tuple[str, str]], n_images: int) -> str:
    """The sentence about unreadable images, given as (id, reason): how many, and the first five."""
    first = "; ".join(f"{name!r}: {why}" for name, why in found[:5])
    return f"{len(found)} of {n_images} images cannot be read ({first}{'; ...' if len(found) > 5 else ''})"
