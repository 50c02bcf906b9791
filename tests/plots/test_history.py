import math

import numpy as np
import pytest

from attnprobe.core.errors import InputError
from attnprobe.plots import filmstrip, onset
from attnprobe.plots.history import edges, frame_tiles, frames
from tests.histories import TOKENS, history


def test_every_number_of_epochs_has_all_letters_inside(clipped):
    for epochs in ((3,), (1, 2), range(1, 8), range(0, 3000, 100)):
        ax = filmstrip(history(epochs))
        assert clipped(ax.figure) == []


def test_frames_are_the_epochs_they_are_labelled_with():
    h = history(range(1, 41), similar_from=20)
    ax = filmstrip(h, most=10)
    labels = [int(text.get_text().removeprefix("epoch ")) for text in ax.texts]
    assert labels[0] == 1 and labels[-1] == 40 and len(labels) == 10
    for epoch, image in zip(labels, ax.images, strict=True):
        np.testing.assert_array_equal(image.get_array(), h.matrices["layer_similarity"][epoch - 1])
        assert image.origin == "lower"


def test_frames_are_evenly_spread_in_time_not_in_number():
    assert frames(np.array([1, 2, 3, 4, 50, 100]), 3) == [0, 4, 5]
    assert frames(np.array([7]), 10) == [0]
    assert frames(np.arange(1, 5), 10) == [0, 1, 2, 3]


@pytest.mark.parametrize("n", [1, 4, 5, 10])
def test_frames_stand_in_rows_of_five(n):
    tiles = frame_tiles(n)
    assert (tiles.columns, tiles.rows) == (min(n, 5), -(-n // 5))


def test_all_frames_share_one_scale_that_covers_the_metrics_range():
    h = history()
    ax = filmstrip(h)
    assert {image.get_clim() for image in ax.images} == {(0.0, 1.0)}
    h.matrices["layer_similarity"][0, 0, 1] = -0.5
    assert {image.get_clim() for image in filmstrip(h).images} == {(-1.0, 1.0)}
    assert filmstrip(h, limits=(0.2, 0.4)).images[0].get_clim() == (0.2, 0.4)


def test_filmstrip_refuses_what_was_not_measured():
    with pytest.raises(InputError, match="no matrices of 'row_entropy'; it has layer_similarity"):
        filmstrip(history(), metric="row_entropy")


def test_filmstrip_changes_nothing_global(global_state, fresh_axes):
    before = global_state()
    filmstrip(history(), fresh_axes())
    assert global_state() == before


def mesh(ax):
    return next(c for c in ax.collections if hasattr(c, "get_coordinates"))


@pytest.mark.parametrize("blocks", [1, 4, 16, 48])
@pytest.mark.parametrize("metric", ["similar_blocks", "row_entropy", "layer_similarity"])
def test_every_onset_has_blocks_from_one_and_all_letters_inside(blocks, metric, clipped, labels):
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


def test_onset_refuses_what_was_not_measured():
    with pytest.raises(InputError, match="did not measure 'prefix_mass'; it has similar_blocks"):
        onset(history(), metric="prefix_mass")


def test_onset_changes_nothing_global(global_state, fresh_axes):
    before = global_state()
    onset(history(), fresh_axes())
    assert global_state() == before
