"""Batch augmentation: per-image randomness, inside the picture, off when off."""

import torch

from attnprobe.training.augment import augment
from attnprobe.training.config import TrainConfig


def config(**options):
    return TrainConfig(model="x", dataset="y", **options)


def test_nothing_chosen_changes_nothing():
    pixels = torch.randn(3, 3, 8, 8)
    assert augment(pixels, config()) is pixels


def test_a_certain_flip_is_the_mirror_image():
    pixels = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(augment(pixels, config(hflip=1.0)), pixels.flip(-1))


def test_crops_stay_inside_and_differ_between_images():
    ramp = torch.linspace(0, 1, 16).expand(1, 1, 16, 16).repeat(64, 3, 1, 1)
    out = augment(ramp, config(scale=(0.3, 0.6), ratio=(0.75, 1.33)))
    assert out.min() >= 0 and out.max() <= 1
    width = out[:, 0, 8, -1] - out[:, 0, 8, 0]
    assert (width > 0.3).all() and (width < 0.95).all()
    assert len(width.unique()) > 32


def test_erasing_touches_the_chosen_share_of_images_and_a_bounded_area():
    torch.manual_seed(0)
    out = augment(torch.full((400, 3, 20, 20), 7.0), config(reprob=0.5))
    changed = (out != 7.0).float().mean((1, 2, 3))
    assert 0.4 < (changed > 0).float().mean() < 0.6
    assert changed.max() <= 0.26
