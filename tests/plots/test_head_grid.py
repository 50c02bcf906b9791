import numpy as np
import pytest

from attnprobe.core.errors import ShapeError
from attnprobe.plots import head_grid
from tests.reports.formulas import head_distance, measurement


def test_every_size_has_a_numbered_panel_per_block_and_all_letters_inside(layers, heads, clipped):
    ax = head_grid(measurement("head_divergence", head_distance(layers, heads, 2)))
    assert clipped(ax.figure) == []
    assert [text.get_text() for text in ax.texts] == [str(block + 1) for block in range(layers)]
    assert len(ax.images) == layers


def test_each_panel_is_its_block_on_one_scale():
    m = measurement("head_divergence", head_distance(4, 3, 2))
    images = head_grid(m).images
    for image, matrix in zip(images, m.mean, strict=True):
        np.testing.assert_array_equal(image.get_array(), matrix)
    assert {(image.norm.vmin, image.norm.vmax) for image in images} == {(0.0, np.log(2))}


def test_other_axes_are_refused():
    with pytest.raises(ShapeError, match="head_grid draws"):
        head_grid(measurement("row_entropy", np.ones((2, 2))))
