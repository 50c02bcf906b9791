import numpy as np
import pytest

from attnprobe.core.errors import ShapeError
from attnprobe.plots import head_atlas, head_grid, layer_head, layer_key, layer_matrix, plot
from tests.reports.formulas import head_distance, layer_cosine, measurement, types


def cells(ax):
    """What a heat map draws, [row, column]."""
    return np.asarray(ax.collections[0].get_array())


def limits(ax):
    return ax.collections[0].get_clim()


def test_every_layer_matrix_has_blocks_from_one_and_all_letters_inside(layers, heads, clipped, labels):
    ax = layer_matrix(measurement("layer_similarity", layer_cosine(layers, 0.2)))
    assert clipped(ax.figure) == []
    for axis in (ax.xaxis, ax.yaxis):
        shown = labels(axis)
        assert shown[0] == (0.5, "1")
        assert all(int(text) == at + 0.5 for at, text in shown)


def test_a_layer_matrix_shows_the_mean_as_it_is_from_the_bottom():
    m = measurement("layer_similarity", layer_cosine(5, 0.2) + np.arange(5))
    ax = layer_matrix(m)
    np.testing.assert_array_equal(cells(ax), m.mean)
    assert not ax.yaxis_inverted() and ax.get_aspect() == 1


def test_two_runs_with_the_same_limits_have_the_same_colours(fresh_axes):
    meshes = [
        layer_matrix(measurement("layer_similarity", layer_cosine(4, far)), fresh_axes(), limits=(0.2, 0.8))
        for far in (0.1, 0.9)
    ]
    assert {limits(ax) for ax in meshes} == {(0.2, 0.8)}
    assert {ax.collections[0].cmap.name for ax in meshes} == {"viridis"}


@pytest.mark.parametrize("draw", [layer_matrix, layer_head, layer_key])
def test_a_given_axes_is_used_and_nothing_else_changes(draw, fresh_axes, global_state):
    name = {layer_matrix: "layer_similarity", layer_head: "row_entropy", layer_key: "attention_rollout"}[draw]
    m, before = measurement(name, layer_cosine(4, 0.2)), global_state()
    ax = fresh_axes()
    assert draw(m, ax) is ax
    assert global_state() == before


def test_a_title_is_text_and_never_a_formula(fresh_axes):
    ax = layer_matrix(measurement("layer_similarity", layer_cosine(3, 0.2)), fresh_axes(), title="$\\frac{1$ a_b")
    ax.figure.canvas.draw()
    assert ax.get_title() == "$\\frac{1$ a_b"


def test_every_layer_head_has_blocks_and_heads_from_one_and_all_letters_inside(layers, heads, clipped, labels):
    ax = layer_head(measurement("row_entropy", np.random.default_rng(0).random((layers, heads))))
    assert clipped(ax.figure) == []
    for axis in (ax.xaxis, ax.yaxis):
        assert labels(axis)[0] == (0.5, "1")
        assert all(int(text) == at + 0.5 for at, text in labels(axis))


def test_depth_runs_from_left_to_right_and_head_1_is_at_the_top_as_in_the_other_figures_of_heads():
    values = np.arange(6.0).reshape(3, 2)
    ax = layer_head(measurement("row_entropy", values))
    np.testing.assert_array_equal(cells(ax), values.T)
    assert not ax.xaxis_inverted() and ax.yaxis_inverted()
    atlas = head_atlas(types(3, 2))
    grid = head_grid(measurement("head_divergence", [[[0.0, 0.5], [0.5, 0.0]]]))
    assert atlas.yaxis_inverted() and grid.images[0].origin == "upper"


def test_of_several_prefix_tokens_the_sum_is_shown():
    values = np.random.default_rng(1).random((3, 2, 4)) / 8
    ax = layer_head(measurement("prefix_mass", values, coords={"prefix": list("abcd")}))
    np.testing.assert_allclose(cells(ax), values.sum(-1).T)


def test_a_cell_without_a_value_has_its_own_colour():
    mesh = layer_head(measurement("row_entropy", [[1.0, np.nan]])).collections[0]
    seen, missing = mesh.to_rgba(mesh.get_array()).reshape(-1, 4)
    assert tuple(seen) != tuple(missing)


@pytest.mark.parametrize(("layers", "tokens"), [(1, 1), (4, 17), (48, 197)])
def test_blocks_go_down_and_tokens_to_the_right_at_any_size(layers, tokens, clipped, labels):
    values = np.random.default_rng(0).random((layers, tokens))
    m = measurement("attention_rollout", values / values.sum(1, keepdims=True))
    ax = plot(m)
    assert clipped(ax.figure) == [] and ax.get_ylabel() == "block"
    np.testing.assert_array_equal(cells(ax), m.mean)
    assert limits(ax)[1] == pytest.approx(m.mean.max()) and ax.yaxis_inverted()
    assert labels(ax.yaxis)[0] == (0.5, "1")
    assert all(int(text) == at - 0.5 for at, text in labels(ax.xaxis))


def test_every_head_grid_has_a_numbered_tile_per_block_and_all_letters_inside(layers, heads, clipped):
    ax = head_grid(measurement("head_divergence", head_distance(layers, heads, 2)))
    assert clipped(ax.figure) == []
    assert [text.get_text() for text in ax.texts] == [str(block + 1) for block in range(layers)]
    assert len(ax.images) == layers


def test_each_tile_is_its_block_on_one_scale():
    m = measurement("head_divergence", head_distance(4, 3, 2))
    images = head_grid(m).images
    for image, matrix in zip(images, m.mean, strict=True):
        np.testing.assert_array_equal(image.get_array(), matrix)
    assert {(image.norm.vmin, image.norm.vmax) for image in images} == {(0.0, np.log(2))}


@pytest.mark.parametrize("draw", [layer_matrix, layer_key, head_grid])
def test_other_axes_are_refused_with_their_names(draw):
    with pytest.raises(ShapeError, match=rf"{draw.__name__} draws axes .*, but 'row_entropy' has \(layer, head\)"):
        draw(measurement("row_entropy", np.ones((2, 2))))
    with pytest.raises(ShapeError, match="layer_head draws axes"):
        layer_head(measurement("layer_similarity", layer_cosine(3, 0.5)))
