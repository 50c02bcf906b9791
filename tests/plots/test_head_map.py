from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pytest

from attnprobe.core.errors import InputError
from attnprobe.core.maps import Part
from attnprobe.plots import head_map, sliders
from tests.plots.test_map_strip import maps_of


def test_blocks_and_heads_are_counted_from_one():
    maps = maps_of()
    ax = head_map(maps, block=2, head=3, image=1)
    np.testing.assert_array_equal(ax.images[-1].get_array(), maps.values[1, 1, 2])
    assert ax.get_title() == "block 2, head 3\nsoftmax maps, b" and ax.get_ylabel() == "query"


def test_blocks_keep_their_numbers_where_not_all_were_captured():
    maps = replace(maps_of(), part=Part(layers=(4, 9)))
    np.testing.assert_array_equal(head_map(maps, block=10).images[-1].get_array(), maps.values[0, 1, 0])
    with pytest.raises(InputError, match="no block 2; there are 5, 10"):
        head_map(maps, block=2)


def test_a_query_lies_over_the_image_with_its_own_patch_outlined():
    maps, pixels = maps_of(), np.full((20, 40, 3), 128, np.uint8)
    ax = head_map(maps, query=1 + 4 + 2, pixels=pixels)  # row 1, column 2
    below, above = ax.images
    assert below.get_extent() == above.get_extent() and below.get_array().shape == (20, 40)
    np.testing.assert_array_equal(above.get_array(), maps.values[0, 0, 0, 7, 1:].view(2, 4))
    assert ax.patches[-1].get_bbox().bounds == (2, 1, 1, 1) and 0 < above.get_alpha() < 1


def test_sliders_reach_every_head_on_one_scale(monkeypatch):
    monkeypatch.setattr(plt, "show", lambda: None)
    maps = replace(maps_of(layers=2, heads=3), part=Part(layers=(4, 9)))
    widget = sliders(maps)
    block, head = widget.children[:2]
    assert (block.options, head.options) == ((5, 10), (1, 2, 3)) and block.description == "block"
    seen = []
    for block.value, head.value in ((5, 1), (10, 3)):
        widget.update()
        image = plt.gca().images[-1]
        np.testing.assert_array_equal(image.get_array(), maps.values[0, block.index, head.value - 1])
        seen.append((image.norm.vmin, image.norm.vmax))
    assert seen[0] == seen[1] and seen[0][0] == 0
