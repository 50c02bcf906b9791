from dataclasses import replace

import numpy as np
import pytest

from attnprobe.plots import attention_grid
from attnprobe.plots.attention_grid import attention_limits
from tests.reports.formulas import picture


def test_every_size_has_a_numbered_tile_per_block_and_all_letters_inside(layers, heads, clipped):
    ax = attention_grid(picture(layers, heads))
    assert clipped(ax.figure) == []
    assert [text.get_text() for text in ax.texts] == ["image", "block 1", *map(str, range(2, layers + 1))]
    assert len(ax.images) == 1 + 2 * layers


def test_each_tile_is_the_mean_over_heads_and_all_share_one_scale():
    shown = picture(5, 3)
    shown = replace(shown, attention=np.random.default_rng(0).random((5, 3, 4, 4)))
    overlays = attention_grid(shown).images[2::2]
    for overlay, per_head in zip(overlays, shown.attention, strict=True):
        np.testing.assert_allclose(overlay.get_array(), sum(per_head) / 3)
        assert overlay.get_alpha() < 1
    assert len({(overlay.norm.vmin, overlay.norm.vmax) for overlay in overlays}) == 1


def test_a_uniform_block_is_of_one_colour():
    shown = replace(picture(2, 1), attention=np.full((2, 1, 4, 4), 1 / 16))
    overlay = attention_grid(shown).images[2]
    assert np.ptp(overlay.to_rgba(overlay.get_array()), axis=(0, 1)).max() == 0


@pytest.mark.parametrize("shape", [(32, 64), (96, 32)])
def test_pictures_that_are_not_square_keep_their_shape(shape, clipped):
    shown = replace(picture(6, 2), pixels=np.zeros((*shape, 3), np.uint8))
    ax = attention_grid(shown)
    left, right, bottom, top = ax.images[0].get_extent()
    assert (top - bottom) / (right - left) == pytest.approx(shape[0] / shape[1])
    assert clipped(ax.figure) == []


def test_long_names_of_files_and_classes_stay_inside(clipped):
    shown = picture(16, 2, image_id="a/very/long/path/" * 9, label="label " * 20, prediction="prediction " * 20)
    assert clipped(attention_grid(shown).figure) == []


def test_limits_start_at_zero_and_survive_attention_that_is_not_finite():
    shown = picture(2, 1)
    broken = replace(shown, attention=np.full((2, 1, 4, 4), np.nan))
    assert attention_limits([broken]) == (0.0, 1.0)
    low, high = attention_limits([shown, broken])
    assert low == 0 and 0 < high <= shown.attention.max()
    attention_grid(broken).figure.canvas.draw()
