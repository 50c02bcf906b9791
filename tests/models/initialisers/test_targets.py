"""Target maps against loops and against a convolution."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.errors import ShapeError
from attnprobe.models.initialisers.targets import (
    check_window,
    drawn_offsets,
    impulse_targets,
    offset,
    ordered_offsets,
    shifts,
)


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 5), cols=st.integers(1, 5), kernel=st.integers(1, 6))
def test_targets_equal_a_loop(rows, cols, kernel):
    maps = impulse_targets(rows, cols, kernel)
    assert maps.shape == (kernel**2, rows * cols, rows * cols)
    for code in range(kernel**2):
        m, n = code // kernel - kernel // 2, code % kernel - kernel // 2
        for r in range(rows):
            for c in range(cols):
                row = maps[code, r * cols + c]
                if 0 <= r + m < rows and 0 <= c + n < cols:
                    assert row.sum() == 1 and row[(r + m) * cols + c + n] == 1
                else:
                    assert row.sum() == 0


def test_targets_are_a_zero_padded_convolution_with_one_tap():
    picture = torch.randn(1, 1, 4, 5)
    for code, target in enumerate(impulse_targets(4, 5, 3)):
        kernel = F.one_hot(torch.tensor(code), 9).float().view(1, 1, 3, 3)
        expected = F.conv2d(picture, kernel, padding=1).flatten()
        torch.testing.assert_close(target @ picture.flatten(), expected)


def test_offsets_are_drawn_from_the_whole_window():
    torch.manual_seed(0)
    drawn = {tuple(place) for place in drawn_offsets(500, 3).tolist()}
    assert drawn == {(row, col) for row in (-1, 0, 1) for col in (-1, 0, 1)}


def test_in_order_heads_get_centre_up_right_left_down_corners_and_start_again():
    expected = [(0, 0), (-1, 0), (0, 1), (0, -1), (1, 0), (-1, -1), (-1, 1), (1, -1), (1, 1), (0, 0)]
    assert [tuple(place) for place in ordered_offsets(10, 3).tolist()] == expected


def test_larger_windows_are_ordered_from_the_centre_outwards():
    places = ordered_offsets(25, 5)
    assert len({tuple(place) for place in places.tolist()}) == 25
    assert places.square().sum(-1).diff().min() >= 0


def test_offset_reads_the_window_row_by_row():
    assert [offset(code, 3) for code in (0, 1, 4, 8)] == [(-1, -1), (-1, 0), (0, 0), (1, 1)]


def test_shifts_of_opposite_offsets_are_transposed():
    forth, back = shifts(4, 5, torch.tensor([[1, -2], [-1, 2]]))
    assert torch.equal(forth, back.T)


def test_a_window_larger_than_the_grid_is_refused():
    check_window(4, 8, 7)
    with pytest.raises(ShapeError, match="largest window here is 7"):
        check_window(4, 8, 9)
