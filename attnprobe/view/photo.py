"""Images as files for a browser: small ones lossless, others compressed."""

import io

import numpy as np
from PIL import Image

SMALL = 64
"""Longest side in pixels up to which an image is stored without loss."""


def as_file(pixels: np.ndarray) -> tuple[bytes, str]:
    """[row, col, 3], uint8 -> a PNG or WebP file and its media type."""
    file = io.BytesIO()
    kind = "png" if max(pixels.shape[:2]) <= SMALL else "webp"
    Image.fromarray(pixels).save(file, kind, quality=85)
    return file.getvalue(), f"image/{kind}"
