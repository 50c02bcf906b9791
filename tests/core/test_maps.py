"""Nouns refuse what would give numbers that only look right."""

import pytest
import torch

from attnprobe.core.errors import ShapeError
from attnprobe.core.images import ImageBatch, InputSpec
from attnprobe.core.maps import AttentionMaps, TokenGrid, uniform_maps


def test_one_layer_is_told_to_stack():
    with pytest.raises(ShapeError, match=r"got 4 axes \(2, 3, 5, 5\). One layer is"):
        AttentionMaps(torch.rand(2, 3, 5, 5), ("a", "b"), TokenGrid(2, 2))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"image_ids": ("a",)}, "one id per image"),
        ({"layers": ("x",)}, "layer names"),
        ({"grid": TokenGrid(3, 3)}, "needs 10 queries"),
        ({"values": torch.ones(2, 2, 1, 5, 5, dtype=torch.int64)}, "floating point"),
    ],
)
def test_disagreeing_fields_are_refused(fields, message):
    good = {"values": torch.rand(2, 2, 1, 5, 5), "image_ids": ("a", "b"), "grid": TokenGrid(2, 2)}
    with pytest.raises(ShapeError, match=message):
        AttentionMaps(**{**good, **fields})


def test_a_slice_of_images_shares_memory(make_maps):
    maps = make_maps(images=4)
    part = maps.images(1, 3)
    assert part.image_ids == ("image1", "image2")
    assert part.values.data_ptr() == maps.values[1:].data_ptr()


def test_uniform_maps_are_uniform(make_maps):
    maps = uniform_maps(make_maps(images=3))
    assert maps.n_images == 1 and maps.stochastic
    torch.testing.assert_close(maps.values.sum(-1), torch.ones_like(maps.values[..., 0]))
    assert maps.values.std() == 0


def test_pixels_survive_normalisation():
    spec = InputSpec(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    pixels = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(spec.restore(spec.normalise(pixels)), pixels)
    luma = (pixels * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)  # ITU-R BT.601
    torch.testing.assert_close(spec.grey().restore(spec.grey().normalise(pixels)), luma.expand(-1, 3, -1, -1))
    with pytest.raises(ShapeError, match="one id per image"):
        ImageBatch(pixels, torch.zeros(2), ("a",))
