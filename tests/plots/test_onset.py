import math

import numpy as np
import pytest

from attnprobe.core.errors import InputError
from attnprobe.plots import onset
from attnprobe.plots.onset import edges
from tests.histories import TOKENS, history


def mesh(ax):
    return next(c for c in ax.collections if hasattr(c, "get_coordinates"))


@pytest.mark.parametrize("blocks", [1, 4, 16, 48])
@pytest.mark.parametrize("metric", ["similar_blocks", "row_entropy", "layer_similarity"])
def test_every_size_has_blocks_from_one_and_all_letters_inside(blocks, metric, clipped, labels):
    ax = onset(history(blocks=blocks), metric=metric)
    assert clipped(ax.figure) == []
    assert labels(ax.yaxis)[0] == (0, "1")
    assert all(int(text) == at + 1 for at, text in labels(ax.yaxis))


@pytest.mark.parametrize("epochs", [(5,), (0,), (1, 2), (1, 40, 300)])
def test_any_epochs_can_be_drawn(epochs, clipped):
    ax = onset(history(epochs))
    assert clipped(ax.figure) == []
    low, high = ax.get_xlim()
    assert low <= epochs[0] - 0.5 and high >= epochs[-1] + 0.5


def test_each_cell_has_the_value_of_its_epoch_and_block():
    h = history((1, 2, 5))
    drawn = mesh(onset(h, metric="row_entropy"))
    np.testing.assert_array_equal(np.asarray(drawn.get_array()).reshape(6, 3), h.blocks["row_entropy"].T)
    np.testing.assert_array_equal(drawn.get_coordinates()[0, :, 0], [0.5, 1.5, 3.5, 5.5])


def test_edges_lie_halfway_between_the_epochs():
    assert edges(np.array([1, 2, 6])).tolist() == [0.5, 1.5, 4, 6.5]
    assert edges(np.array([3])).tolist() == [2.5, 3.5]


def test_dots_mark_the_cells_that_count_as_similar():
    h = history((1, 2, 4, 8), similar_from=4)
    (dots,) = onset(h).get_lines()
    marked = {(int(x), int(y) + 1) for x, y in zip(*dots.get_data(), strict=True)}
    late = {(epoch, block) for epoch in (4, 8) for block in (4, 5, 6)}
    assert marked == late | {(1, block) for block in range(2, 7)}
    assert not onset(h, metric="row_entropy").get_lines()


def test_colours_reach_from_zero_to_uniform_attention():
    low, high = mesh(onset(history(), metric="row_entropy")).get_clim()
    assert low == 0 and high == pytest.approx(math.log(TOKENS))
    assert mesh(onset(history(), limits=(0.1, 0.2))).get_clim() == (0.1, 0.2)


def test_values_that_are_not_finite_are_drawn_as_missing(clipped):
    ax = onset(history(entropy=np.full((7, 6), np.nan)), metric="row_entropy")
    assert clipped(ax.figure) == []
    assert np.ma.getmaskarray(mesh(ax).get_array()).all()


def test_what_was_not_measured_is_refused():
    with pytest.raises(InputError, match="did not measure 'prefix_mass'; it has similar_blocks"):
        onset(history(), metric="prefix_mass")


def test_nothing_global_changes(global_state, fresh_axes):
    before = global_state()
    onset(history(), fresh_axes())
    assert global_state() == before
