"""The grid of tokens in its usual order and with explicit positions."""

import numpy as np
import pytest

from attnprobe.core.errors import ShapeError
from attnprobe.core.grid import TokenGrid

SCATTERED = TokenGrid(2, 3, ("cls", "reg0"), (8, 8), (4, -1, 0, 5, -1))


def test_tokens_are_counted_by_their_positions():
    assert (SCATTERED.n_tokens, SCATTERED.n_patches, SCATTERED.n_prefix) == (5, 3, 2)
    assert SCATTERED.patches_in_words == "3 of 2 x 3 patches"
    assert (SCATTERED.token("cls"), SCATTERED.token("reg0"), SCATTERED.token("dist")) == (1, 4, None)


def test_values_are_laid_out_over_the_image():
    values = np.array([[4.0, -1, 0, 5, -2]])
    nan = np.nan
    np.testing.assert_array_equal(SCATTERED.laid_out(values), [[-1, -2, 0, nan, nan, nan, 4, 5]])
    np.testing.assert_array_equal(SCATTERED.over_image(values), [[[0, nan, nan], [nan, 4, 5]]])
    assert values[0, SCATTERED.patches].tolist() == [0, 4, 5]
    assert values[0, SCATTERED.prefix_tokens].tolist() == [-1, -2]
    assert SCATTERED.patch_positions == [0, 4, 5]


def test_usual_positions_say_the_same_as_none():
    usual = TokenGrid(2, 3, ("cls",))
    spelt = TokenGrid(2, 3, ("cls",), positions=(-1, *range(6)))
    values = np.arange(7.0)
    for grid in (usual, spelt):
        assert values[grid.patches].tolist() == [1, 2, 3, 4, 5, 6] and values[grid.prefix_tokens].tolist() == [0]
        assert (grid.slots, grid.patch_positions, grid.n_tokens) == (list(range(7)), list(range(6)), 7)
        np.testing.assert_array_equal(grid.over_image(values), [[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("positions", [(-1, 0, 0), (-1, 0, 6), (0, 1, 2), (-1, -1, 0), (-2, 0, 1)])
def test_positions_that_are_none_are_refused(positions):
    with pytest.raises(ShapeError, match="positions of tokens must be"):
        TokenGrid(2, 3, ("cls",), positions=positions)
