"""Image files of known pixels, written by the tests."""

import numpy as np
import pytest
from PIL import Image

from attnprobe.core.images import InputSpec


@pytest.fixture
def write_image():
    """Write a picture of smooth random colours; lossless unless the ending says otherwise."""

    def write(path, seed=0, size=(37, 53), mode="RGB"):
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.RandomState(seed).randint(0, 256, (5, 7, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((size[1], size[0]), Image.Resampling.BICUBIC).convert(mode).save(path)
        return path

    return write


@pytest.fixture
def small():
    """An input that makes tests fast and differs in its two sides and three channels."""
    return InputSpec((24, 20), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


@pytest.fixture
def collect():
    """All of a source as {id: (pixels, label)}."""

    def everything(source, batch_size=4, **options):
        found = {}
        for batch in source.batches(batch_size, **options):
            for name, pixels, label in zip(batch.ids, batch.pixels, batch.labels.tolist(), strict=True):
                assert name not in found
                found[name] = (pixels, label)
        return found

    return everything
