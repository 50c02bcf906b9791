"""Upright 8-bit RGB of an opened image, as an image viewer shows it."""

from typing import Any

import numpy as np
from PIL import Image, ImageOps

from attnprobe.core.errors import InputError

DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I", "F")
"""Pillow's modes of one channel with more than 8 bits, which its own conversion cuts off at 255."""

BITS_PER_SAMPLE, WHITE_IS_ZERO, MAX_SAMPLE = 258, 262, 281
"""Tags of a TIFF file: bits of a value; 0 if value 0 is white; and the largest value."""

LEAST_OF_16_BITS = 4096
"""Cameras and microscopes write 10 or 12 bits unscaled into files of 16; shown as 16 bits, they are black."""

BACKGROUND = (255, 255, 255)
"""Transparent images are shown on white."""


def as_rgb(image: Image.Image) -> Image.Image:
    """An image rotated as its EXIF orientation says, deep values scaled to 8 bits, transparency composited on white.

    Raises:
        InputError: values of more than 8 bits whose range the file does not say.
    """
    ImageOps.exif_transpose(image, in_place=True)
    if image.mode in DEEP:
        return _eight_bits(image).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    with_alpha = image.convert("RGBA")
    shown = Image.new("RGBA", with_alpha.size, BACKGROUND)
    return Image.alpha_composite(shown, with_alpha).convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """The values of a deep image as bytes, from black (0) to the white of its file."""
    values = np.asarray(image).astype(np.float64)
    tags = getattr(image, "tag_v2", {})
    share = values / (_white_of_floats(values) if image.mode == "F" else _white_of_integers(image, values, tags))
    if tags.get(WHITE_IS_ZERO) == 0:
        share = 1 - share
    return Image.fromarray((share * 255).round().clip(0, 255).astype(np.uint8))


def _white_of_floats(values: np.ndarray) -> float:
    """1, the white of images of floats.

    Raises:
        InputError: values outside of [0, 1].
    """
    low, high = values.min(), values.max()
    if not (low >= 0 and high <= 1):  # also NaN
        raise InputError(
            f"its floats range from {low:g} to {high:g}, expected 0 (black) to 1 (white); scale them, or save 8 bits"
        )
    return 1.0


def _white_of_integers(image: Image.Image, values: np.ndarray, tags: Any) -> float:
    """The value of white: 2^bits - 1, of the bits that the file declares.

    Raises:
        InputError: 32 bits, for which there is no convention; negative values; or values so low that they may be of
            10 or 12 bits in a file of 16.
    """
    largest, declared = values.max(), np.ravel(tags.get(MAX_SAMPLE, 0))[0]
    if declared >= largest and declared in [2**bits - 1 for bits in range(8, 17)]:  # else a statistic of the image
        return float(declared)
    if image.mode == "I" and image.format not in ("PNG", "PPM"):  # these two are scaled to 16 bits by Pillow
        raise InputError(
            f"its 32-bit integers (up to {largest:.0f}) do not say which value is white; save it with 8 or 16 bits"
        )
    white = 2 ** int(np.ravel(tags.get(BITS_PER_SAMPLE, 16))[0]) - 1
    if 0 < largest < LEAST_OF_16_BITS and white == 65535:
        raise InputError(
            f"its 16-bit values end at {largest:.0f} of 65535 and may be of 12 bits or fewer, which the file does not "
            "say; scale them to 65535, or save 8 bits"
        )
    return float(white)
