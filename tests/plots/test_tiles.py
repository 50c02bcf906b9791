from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.plots.tiles import Tiles


@given(n=st.integers(1, 60), height=st.floats(0.25, 4))
@settings(max_examples=60, deadline=None)
def test_tiles_lie_inside_keep_their_shape_and_never_overlap(n, height):
    tiles = Tiles(n, height)
    width, depth = tiles.size
    boxes = [tiles.extent(i) for i in range(n)]
    for left, right, bottom, top in boxes:
        assert abs(right - left - 1) < 1e-9 and abs(top - bottom - height) < 1e-9
        assert left >= -1e-9 and right <= width + 1e-9 and -depth - 1e-9 <= bottom and top <= 0
    for i, (left, right, bottom, top) in enumerate(boxes):
        for other in boxes[:i]:
            assert right <= other[0] or other[1] <= left or top <= other[2] or other[3] <= bottom


def test_reading_order_is_left_to_right_then_down():
    tiles = Tiles(16)
    assert tiles.columns == 4
    assert tiles.extent(1)[0] > tiles.extent(0)[0] and tiles.extent(1)[3] == tiles.extent(0)[3]
    assert tiles.extent(4)[0] == tiles.extent(0)[0] and tiles.extent(4)[3] < tiles.extent(0)[3]
