"""Two photographs as what the tests of augmentation start from."""

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images


def photographs(size: int = 96) -> list[Image.Image]:
    """Six crops of two photographs, RGB, `size` x `size`."""
    whole = [Image.fromarray(photo) for photo in load_sample_images().images]
    places = [(left, 60) for left in (0, 180, 360)]
    return [
        photo.crop((left, top, left + 2 * size, top + 2 * size)).resize((size, size))
        for photo in whole
        for left, top in places
    ]


def as_bytes(pictures: list[Image.Image]) -> torch.Tensor:
    """Pictures -> [image, 3, row, col], uint8."""
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2).contiguous()
