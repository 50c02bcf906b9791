"""Rearranged measurements hold the numbers of the original where they should be."""

from dataclasses import replace

import numpy as np
import pytest

from attnprobe.core.errors import InputError
from attnprobe.metrics import (
    content_overlap,
    head_dependence,
    head_divergence,
    layer_similarity,
    map_cka,
    measure,
    row_entropy,
)
from attnprobe.stats.alignment import (
    at_images,
    at_relative_depth,
    mean_over_heads,
    one_number,
    with_heads_ordered,
)
from attnprobe.stats.paired import paired_difference


@pytest.fixture
def measured(make_maps):
    def run(seed=0, metrics=(row_entropy, layer_similarity, head_divergence), **size):
        return measure([make_maps(seed=seed, images=5, **size)], metrics, bootstrap=20)

    return run


def test_images_are_picked_by_name(measured):
    m = measured()["row_entropy"]
    few = at_images(m, ("image3", "image1"))
    np.testing.assert_array_equal(few.per_image, m.per_image[[3, 1]])
    assert few.image_ids == ("image3", "image1") and few.n_images == 2
    with pytest.raises(InputError, match="not measured on 'image9'"):
        at_images(m, ("image9",))


def test_equal_depth_stays_as_it_is_and_depth_ends_at_the_last_block(measured):
    m = measured(layers=5)["row_entropy"]
    assert at_relative_depth(m, 5) is m
    three = at_relative_depth(m, 3)
    np.testing.assert_allclose(three.per_image, m.per_image[:, [0, 2, 4]])
    four = at_relative_depth(m, 4)
    np.testing.assert_allclose(four.mean[1], m.mean[1] * 2 / 3 + m.mean[2] / 3)  # depth 1/3 is block 1 1/3 of 0..4
    np.testing.assert_allclose(four.per_image.mean(0), four.mean)


def test_matrices_are_read_at_both_depths(measured):
    m = measured(layers=5)["layer_similarity"]
    three = at_relative_depth(m, 3)
    np.testing.assert_allclose(three.mean, m.mean[np.ix_([0, 2, 4], [0, 2, 4])])
    np.testing.assert_allclose(three.baselines["uniform"].mean, np.ones((3, 3)), atol=1e-6)


def test_unrelated_blocks_stay_unrelated_at_other_depths(make_maps):
    """Between two blocks the diagonal of 1 must not be read: 12 and 13 unrelated blocks do not differ."""
    means = []
    for layers in (12, 13):
        one = measure([make_maps(images=8, layers=layers, seed=layers)], [layer_similarity], bootstrap=0)
        at = at_relative_depth(one["layer_similarity"], 12).mean
        np.testing.assert_allclose(at.diagonal(), 1, atol=1e-6)
        means.append(at[np.triu_indices(12, 1)])
    assert abs(means[0].mean() - means[1].mean()) < 0.02 and abs(means[0].max() - means[1].max()) < 0.1


def test_a_block_without_a_value_spoils_only_what_is_read_from_it(measured):
    m = measured(layers=5)["row_entropy"]
    m.per_image[:, 1] = np.nan
    three = at_relative_depth(m, 3)
    assert np.isfinite(three.per_image).all()


def test_heads_are_put_in_another_order_in_each_block(measured):
    found = measured(layers=2, heads=3)
    order = np.array([[2, 0, 1], [0, 2, 1]])
    entropy, divergence = (found[name] for name in ("row_entropy", "head_divergence"))
    put = with_heads_ordered(entropy, order)
    for layer in range(2):
        np.testing.assert_array_equal(put.mean[layer], entropy.mean[layer, order[layer]])
        np.testing.assert_array_equal(
            with_heads_ordered(divergence, order).per_image[:, layer],
            divergence.per_image[:, layer][:, order[layer]][:, :, order[layer]],
        )
    assert with_heads_ordered(found["layer_similarity"], order) is found["layer_similarity"]


def test_models_with_other_numbers_of_heads_share_the_mean_over_heads(measured):
    one, two = (measured(heads=heads)["row_entropy"] for heads in (2, 4))
    found = paired_difference(mean_over_heads(one), mean_over_heads(two), resamples=50)
    np.testing.assert_allclose(found.mean, two.mean.mean(1) - one.mean.mean(1))
    m = measured(heads=3)["head_divergence"]
    pairs = [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0), (2, 1)]
    expected = np.mean([m.per_image[:, :, i, j] for i, j in pairs], 0)
    np.testing.assert_allclose(mean_over_heads(m).per_image, expected)
    assert mean_over_heads(m).axes == ("layer",)
    across = replace(m, axes=("layer", "head", "layer", "head"))
    with pytest.raises(InputError, match="no cell in common"):
        mean_over_heads(across)


def test_a_number_made_of_means_is_compared_as_one(measured):
    one, two = (measured(seed=seed)["row_entropy"] for seed in (0, 1))
    whole = [one_number(m, lambda mean: mean.mean((-2, -1))) for m in (one, two)]
    found = paired_difference(*whole, resamples=200)
    assert found.mean.shape == () and found.ci.shape == (2,)
    np.testing.assert_allclose(found.mean, two.mean.mean() - one.mean.mean())


def test_what_is_no_mean_over_images_is_not_read_between_blocks(make_maps):
    found = measure([make_maps(images=5, layers=4)], [map_cka, head_dependence], bootstrap=20)
    m = found["map_cka"]
    np.testing.assert_array_equal(at_relative_depth(m, 2).mean, m.mean[::3, ::3])  # of matrices blocks are taken
    with pytest.raises(InputError, match="cannot be read between"):
        at_relative_depth(found["head_dependence"], 3)
    other = measure([make_maps(images=5, layers=4, seed=1)], [map_cka], bootstrap=20)["map_cka"]
    corner = [one_number(one, lambda mean: mean[..., 0, 2]) for one in (m, other)]
    np.testing.assert_allclose(paired_difference(*corner, resamples=50).mean, other.mean[0, 2] - m.mean[0, 2])


def test_sketches_are_not_taken_for_layers(measured):
    m = measured(layers=4, metrics=(content_overlap,))["content_overlap"]
    with pytest.raises(InputError, match="content_overlap is no mean over images and cannot be read between"):
        at_relative_depth(m, 2)
