from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from attnprobe.core.errors import ShapeError
from attnprobe.metrics.head_types import TYPES
from attnprobe.plots import head_atlas, plot
from attnprobe.plots.head_atlas import ACROSS, COLOURS, DOWN, FRAME, SHORT, SIDE, TILE
from attnprobe.workflows.figure import PRINT
from tests.reports.formulas import types


def test_every_type_has_a_colour_and_a_word_of_its_own():
    assert tuple(COLOURS) == tuple(SHORT) == TYPES
    assert len(set(COLOURS.values())) == len(set(SHORT.values())) == len(TYPES)


def test_each_tile_is_framed_and_lettered_by_its_type_and_shows_its_map(fresh_axes):
    thumbnails = np.random.default_rng(0).random((3, 2, 17, 9))
    ax = head_atlas(types(3, 2), fresh_axes(), thumbnails=thumbnails)
    letters = [text.get_text() for text in ax.texts]
    assert letters == ["dead?", "unif", "unif", "dead", "dead", "unif"]
    (image,) = (np.asarray(image.get_array()) for image in ax.get_images())
    tiles = [image[head * DOWN + DOWN - TILE :, layer * ACROSS :] for layer in range(3) for head in range(2)]
    for tile, name in zip(tiles, ("dead", "uniform", "uniform", "dead", "dead", "uniform"), strict=True):
        np.testing.assert_allclose(tile[0, 0], to_rgba(COLOURS[name]))
    inside = tiles[3][FRAME : FRAME + SIDE, FRAME : FRAME + SIDE]
    row, col = np.unravel_index(thumbnails[1, 1].argmax(), (17, 9))
    pixel = inside[-(-row * SIDE // 17), -(-col * SIDE // 9)]
    np.testing.assert_allclose(pixel, to_rgba("#fde725"), atol=0.01)  # the end of viridis


def test_no_letter_is_cut_at_any_size(layers, heads, clipped):
    assert clipped(plot(types(layers, heads)).figure) == []


@pytest.mark.parametrize("size", [(8, 4), (12, 12), (24, 6)])
def test_in_a_column_of_a_paper_letters_lie_neither_on_tiles_nor_on_one_another(size):
    with matplotlib.rc_context(PRINT):
        ax = head_atlas(types(*size), Figure(figsize=(3.25, 2.4), layout="constrained").add_subplot())
    ax.figure.draw_without_rendering()
    (left, top), (right, bottom) = ax.transData.transform([(0, 0), (ACROSS, DOWN - TILE)])
    boxes = [text.get_window_extent() for text in ax.texts]
    assert max(box.width for box in boxes) < right - left and max(box.height for box in boxes) < top - bottom


def test_maps_without_a_value_and_maps_of_nothing_are_drawn(fresh_axes):
    empty = np.full((3, 2, 5, 5), np.nan)
    assert len(head_atlas(types(3, 2), fresh_axes(), thumbnails=empty).get_images()) == 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ShapeError, match="thumbnails are of"):
        head_atlas(types(3, 2), thumbnails=np.zeros((3, 3, 4, 4)))
    with pytest.raises(ShapeError, match="no colour for type 'odd'"):
        head_atlas(replace(types(3, 2), coords={"type": ["odd"]}))
    with pytest.raises(ShapeError, match="head_atlas draws axes"):
        head_atlas(replace(types(3, 2), axes=("layer", "head", "head")))
