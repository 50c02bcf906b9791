import numpy as np
import pytest
from matplotlib.figure import Figure

from attnprobe.core.errors import ShapeError
from attnprobe.plots import layer_head
from tests.reports.formulas import layer_cosine, measurement


def test_every_size_has_blocks_and_heads_from_one_and_all_letters_inside(layers, heads, clipped, labels):
    ax = layer_head(measurement("row_entropy", np.random.default_rng(0).random((layers, heads))))
    assert clipped(ax.figure) == []
    for axis in (ax.xaxis, ax.yaxis):
        assert labels(axis)[0] == (0, "1")
        assert all(int(text) == at + 1 for at, text in labels(axis))


def test_depth_runs_from_left_to_right():
    values = np.arange(6.0).reshape(3, 2)
    image = layer_head(measurement("row_entropy", values)).images[0]
    np.testing.assert_array_equal(image.get_array(), values.T)


def test_of_several_prefix_tokens_the_sum_is_shown():
    values = np.random.default_rng(1).random((3, 2, 4)) / 8
    image = layer_head(measurement("prefix_mass", values, coords={"prefix": list("abcd")})).images[0]
    np.testing.assert_allclose(image.get_array(), values.sum(-1).T)


def test_a_cell_without_a_value_has_its_own_colour():
    values = np.array([[1.0, np.nan]])
    image = layer_head(measurement("row_entropy", values)).images[0]
    seen, missing = image.to_rgba(image.get_array())[:, 0]
    assert tuple(seen) != tuple(missing)


def test_other_axes_are_refused():
    with pytest.raises(ShapeError, match="layer_head draws"):
        layer_head(measurement("layer_similarity", layer_cosine(3, 0.5)))


def test_it_draws_on_the_axes_it_is_given():
    ax = Figure().add_subplot()
    assert layer_head(measurement("row_entropy", np.ones((2, 3))), ax=ax) is ax
