import numpy as np
import pytest
from scipy.spatial.distance import pdist, squareform

from attnprobe.core.errors import ShapeError
from attnprobe.plots import head_embedding
from attnprobe.plots.head_embedding import scaled
from tests.reports.formulas import layer_cosine, measurement

RNG = np.random.default_rng(0)


def test_every_size_has_all_letters_inside(layers, heads, clipped):
    points = RNG.random((layers * heads, 3)) * 0.3
    squared = squareform(pdist(points, "sqeuclidean")).reshape(layers, heads, layers, heads)
    assert clipped(head_embedding(measurement("head_divergence_across_layers", squared)).figure) == []


def test_distances_on_a_plane_are_kept():
    points = RNG.standard_normal((12, 2))
    places, kept = scaled(squareform(pdist(points, "sqeuclidean")), similarity=False)
    np.testing.assert_allclose(pdist(places), pdist(points))
    assert kept == pytest.approx(1)


def test_things_without_distances_have_no_place_and_leave_the_others_theirs():
    values = squareform(pdist(RNG.standard_normal((8, 2)), "sqeuclidean"))
    holed = values.copy()
    holed[3], holed[:, 3], holed[3, 3] = np.nan, np.nan, 0
    places, kept = scaled(holed, similarity=False)
    others = np.delete(np.arange(8), 3)
    assert np.isnan(places[3]).all() and kept == pytest.approx(1)
    np.testing.assert_allclose(pdist(places[others]), pdist(scaled(values[others][:, others], similarity=False)[0]))
    nowhere, kept = scaled(np.full((4, 4), np.nan), similarity=True)
    assert np.isnan(nowhere).all() and kept == 0


def test_what_a_plane_cannot_hold_is_told():
    places, kept = scaled(1 - np.eye(7), similarity=False)  # a regular simplex: six directions alike
    assert kept == pytest.approx(2 / 6)
    assert places.shape == (7, 2)


def test_cosines_are_drawn_as_distances_between_unit_vectors():
    angle = RNG.random(9) * 6
    points = np.stack([np.cos(angle), np.sin(angle)], 1)
    places, kept = scaled(points @ points.T, similarity=True)
    np.testing.assert_allclose(pdist(places), pdist(points), atol=1e-7)
    assert kept == pytest.approx(1)


def test_heads_that_are_all_alike_are_one_point():
    places, kept = scaled(np.ones((5, 5)), similarity=True)
    np.testing.assert_allclose(places, 0, atol=1e-7)
    assert kept == 1


def test_a_dot_has_the_colour_of_its_block():
    squared = squareform(pdist(RNG.random((6, 2)), "sqeuclidean")).reshape(3, 2, 3, 2) / 9
    ax = head_embedding(measurement("head_divergence_across_layers", squared))
    np.testing.assert_array_equal(ax.collections[0].get_array(), [1, 1, 2, 2, 3, 3])


def test_other_axes_are_refused():
    with pytest.raises(ShapeError, match="head_embedding draws"):
        head_embedding(measurement("layer_similarity", layer_cosine(3, 0.5)))
