from dataclasses import replace

import numpy as np
import pytest
import torch

from attnprobe.core.errors import InputError, ShapeError
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.plots import map_strip


def maps_of(layers=2, heads=3, rows=2, cols=4, prefix=("cls",)):
    grid = TokenGrid(rows, cols, prefix=prefix)
    values = torch.randn(2, layers, heads, grid.n_tokens, grid.n_tokens, generator=torch.Generator().manual_seed(0))
    return AttentionMaps(values.softmax(-1), ("a", "b"), grid)


def test_every_size_has_blocks_and_heads_from_one_and_all_letters_inside(layers, heads, clipped, labels):
    ax = map_strip(maps_of(layers, heads))
    assert clipped(ax.figure) == []
    assert labels(ax.xaxis)[0][1] == labels(ax.yaxis)[0][1] == "1"


def test_every_tile_is_the_map_of_its_block_and_head_and_lies_at_its_number(labels):
    maps = maps_of()
    ax = map_strip(maps, image=1)
    place_of = {axis: {text: at for at, text in labels(axis)} for axis in (ax.xaxis, ax.yaxis)}
    tiles = iter(ax.images)
    for layer in range(2):
        for head in range(3):
            tile = next(tiles)
            np.testing.assert_array_equal(tile.get_array(), maps.values[1, layer, head])
            left, right, bottom, top = tile.get_extent()
            assert left < place_of[ax.xaxis][str(head + 1)] < right
            assert top < place_of[ax.yaxis][str(layer + 1)] < bottom


def test_a_query_is_shown_over_the_patches_with_its_own_place_outlined():
    maps = maps_of()
    ax = map_strip(maps, query=1 + 4 + 2)  # row 1, column 2
    tile = ax.images[-1]
    np.testing.assert_array_equal(tile.get_array(), maps.values[0, 1, 2, 7, 1:].view(2, 4))
    left, _right, bottom, top = tile.get_extent()
    box = ax.patches[-1].get_bbox()
    assert box.x0 == pytest.approx(left + 0.5) and box.x1 == pytest.approx(left + 0.75)
    assert box.y0 == pytest.approx(top + 0.25) and box.y1 == pytest.approx(bottom)
    assert not map_strip(maps, query=0).patches  # the class token sits nowhere


def test_colours_are_shared_by_all_tiles_and_start_at_zero():
    ax = map_strip(maps_of())
    assert {tile.norm.vmin for tile in ax.images} == {0} and len({tile.norm.vmax for tile in ax.images}) == 1


def test_what_is_not_there_is_refused():
    with pytest.raises(InputError, match="image=2 of 2"):
        map_strip(maps_of(), image=2)
    with pytest.raises(InputError, match="query=9 of 9"):
        map_strip(maps_of(), query=9)
    window = replace(maps_of(prefix=()), kind="window")
    with pytest.raises(ShapeError, match="keys that are patches"):
        map_strip(window, query=1)
