import numpy as np
import pytest

from attnprobe.core.errors import InputError
from attnprobe.plots import filmstrip
from attnprobe.plots.filmstrip import frame_tiles, frames
from tests.histories import history


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


def test_what_was_not_measured_is_refused():
    with pytest.raises(InputError, match="no matrices of 'row_entropy'; it has layer_similarity"):
        filmstrip(history(), metric="row_entropy")


def test_nothing_global_changes(global_state, fresh_axes):
    before = global_state()
    filmstrip(history(), fresh_axes())
    assert global_state() == before
