import numpy as np
import pytest

from attnprobe.core.errors import ShapeError
from attnprobe.plots import layer_matrix
from tests.reports.formulas import layer_cosine, measurement


def test_every_size_has_blocks_from_one_and_all_letters_inside(layers, heads, clipped, labels):
    ax = layer_matrix(measurement("layer_similarity", layer_cosine(layers, 0.2)))
    assert clipped(ax.figure) == []
    for axis in (ax.xaxis, ax.yaxis):
        shown = labels(axis)
        assert shown[0] == (0, "1")
        assert all(int(text) == at + 1 for at, text in shown)


def test_it_shows_the_mean_as_it_is():
    m = measurement("layer_similarity", layer_cosine(5, 0.2))
    image = layer_matrix(m).images[0]
    np.testing.assert_array_equal(image.get_array(), m.mean)
    assert image.origin == "lower"


def test_two_runs_with_the_same_limits_have_the_same_colours(fresh_axes):
    images = [
        layer_matrix(measurement("layer_similarity", layer_cosine(4, far)), fresh_axes(), limits=(0.2, 0.8)).images[0]
        for far in (0.1, 0.9)
    ]
    assert {(i.norm.vmin, i.norm.vmax, i.cmap.name) for i in images} == {(0.2, 0.8, "viridis")}


def test_a_given_axes_is_used_and_nothing_else_changes(fresh_axes, global_state):
    before = global_state()
    ax = fresh_axes()
    assert layer_matrix(measurement("layer_similarity", layer_cosine(4, 0.2)), ax) is ax
    assert global_state() == before


def test_a_title_is_text_and_never_a_formula(fresh_axes):
    ax = layer_matrix(measurement("layer_similarity", layer_cosine(3, 0.2)), fresh_axes(), title="$\\frac{1$ a_b")
    ax.figure.canvas.draw()
    assert ax.get_title() == "$\\frac{1$ a_b"


def test_other_axes_are_refused_with_their_names():
    with pytest.raises(ShapeError, match=r"draws axes \(layer, layer\), but 'row_entropy' has \(layer, head\)"):
        layer_matrix(measurement("row_entropy", np.ones((2, 2))))
