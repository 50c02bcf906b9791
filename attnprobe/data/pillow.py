"""Image files, opened and decoded by Pillow with bounds, or the reason why one cannot be read."""

import importlib
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO

import numpy as np
import torch
from PIL import EpsImagePlugin, Image, UnidentifiedImageError
from torch import Tensor

from attnprobe.core.errors import InputError
from attnprobe.data.rgb import DEEP, as_rgb

MAX_PIXELS = 64_000_000
"""192 MB when decoded. Pillow's own limit (179 Mpx) would let a file of some kilobytes take 540 MB."""

with suppress(ImportError):  # Pillow reads HEIC by this plugin alone
    importlib.import_module("pillow_heif").register_heif_opener()
Image.init()

FORMATS = tuple(
    name
    for name in ("PNG", "JPEG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF")
    if name in Image.OPEN
)
"""The formats that are tried, whatever a file's ending; for PostScript Pillow would start Ghostscript."""

EXTENSIONS = tuple(
    sorted(ending for ending, name in Image.registered_extensions().items() if name in (*FORMATS, "MPO"))
)
"""Endings of the files that are read; MPO is a JPEG file of several images."""


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
    """A short reason from an exception in opening or decoding an image."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, UnidentifiedImageError):
        return "not an image Pillow can read"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = (str(error).strip().splitlines() or [""])[0]
    return text if text and isinstance(error, InputError | OSError) else f"{type(error).__name__} {text}".strip()


def remark(file: str) -> str:
    """`remark_on` a file, by its header."""
    try:
        with open_image(file) as image:
            return remark_on(image)
    except Exception:  # `check` says why
        return ""


def remark_on(image: Image.Image) -> str:
    """A clause on what of an opened image the model will not see: transparency or more frames; "" for neither."""
    if image.format in ("GIF", "TIFF", "WEBP", "PNG", "AVIF") and getattr(image, "is_animated", False):
        return "hold several frames, of which the first is used"
    return "have an alpha channel and are shown on white" if image.has_transparency_data else ""


@contextmanager
def without_ghostscript() -> Iterator[None]:
    """Switch Ghostscript off, for libraries that open files by their content."""
    before, EpsImagePlugin.gs_binary = EpsImagePlugin.gs_binary, False
    try:
        yield
    finally:
        EpsImagePlugin.gs_binary = before


@contextmanager
def pillow_quiet() -> Iterator[None]:
    """Hide Pillow's warnings (odd EXIF data, palettes). Enter from one thread only."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="PIL")
        yield


def check(file: str) -> str:
    """The reason why a file cannot be decoded, or ""; JPEG is decoded at 1/8 of its size, in half the time."""
    try:
        with open_image(file) as image:
            image.draft(None, (1, 1))
            image.load()
            if image.mode in DEEP:
                as_rgb(image)
    except Exception as error:  # Pillow's plugins raise OSError, SyntaxError, ValueError, struct.error and others
        return why_unreadable(error)
    return ""


def of_each(look: Callable[[Any], str], files: Iterable[Any], threads: int = 1) -> list[str]:
    """`check`, `remark` ... of every file, in order. Pillow decodes outside the interpreter lock, so threads help."""
    with pillow_quiet(), ThreadPoolExecutor(max(1, threads)) as pool:
        return list(pool.map(look, files))


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
    """All images [image, 3, row, col], uint8, and for each "", or the reason why its pixels are 0."""
    pixels = np.zeros((len(files), 3, *size), dtype=np.uint8)

    def decode(k: int) -> str:
        try:
            with open_image(files[k]) as image:
                pixels[k] = np.asarray(as_rgb(image)).transpose(2, 0, 1)
        except Exception as error:
            return why_unreadable(error)
        return ""

    reasons = of_each(decode, range(len(files)), threads)
    return torch.from_numpy(pixels), reasons


def some_unreadable(found: list[tuple[str, str]], n_images: int) -> str:
    """A sentence about unreadable images, given as (id, reason): their number, and the first five."""
    first = "; ".join(f"{name!r}: {why}" for name, why in found[:5])
    return f"{len(found)} of {n_images} images cannot be read ({first}{'; ...' if len(found) > 5 else ''})"
