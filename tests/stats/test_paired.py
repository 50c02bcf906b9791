import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attnprobe.core.errors import InputError, ShapeError
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.core.metric import metric
from attnprobe.metrics import (
    attention_distance,
    head_similarity,
    layer_similarity,
    map_cka,
    measure,
    row_entropy,
)
from attnprobe.stats import paired
from attnprobe.stats.alignment import one_number
from attnprobe.stats.paired import holm, paired_difference, paired_with_mean


@metric(axes=("layer", "head"))
def itself(maps):
    """The first entry of every map."""
    return maps[..., 0, 0]


def measured(values, ids=None):
    """A measurement whose values [image, layer, head] are these."""
    values = torch.as_tensor(values, dtype=torch.float64)
    maps = values[..., None, None].expand(*values.shape, 3, 3).clone()
    ids = ids or tuple(map(str, range(len(values))))
    return measure([AttentionMaps(maps, ids, TokenGrid(1, 2), stochastic=False)], [itself], bootstrap=10)["itself"]


def by_all_signs(differences):
    """The exact p-value: every way of exchanging the two values of each image."""
    observed = abs(sum(differences))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
    return sum(x >= observed * (1 - 1e-9) for x in sums) / len(sums)


def test_p_values_are_those_of_all_exchanges_and_means_those_of_differences():
    rng = np.random.default_rng(0)
    a = rng.normal(size=(10, 2, 2))
    b = a + rng.normal([[0, 0.2], [0.5, 1.5]], 0.6, size=(10, 2, 2))
    found = paired_difference(measured(a), measured(b), resamples=20_000)
    np.testing.assert_allclose(found.mean, (b - a).mean(0), atol=1e-12)
    for cell in np.ndindex(2, 2):
        np.testing.assert_allclose(found.p[cell], by_all_signs((b - a)[(slice(None), *cell)]), atol=0.015)
    assert found.n_tests == 4 and found.n_images == 10
    assert (found.ci[0] <= found.mean).all() and (found.mean <= found.ci[1]).all()


def by_every_exchange(step, exchanges):
    """Each cell's p-value from as many exchanges, none left out; as the test draws them."""
    chosen = np.random.default_rng([0, 1]).integers(2, size=(exchanges, len(step)))
    observed = np.abs(step.sum(0)) * (1 - 1e-9)
    as_large = sum((np.abs(step.sum(0) - 2 * step[signs.astype(bool)].sum(0)) >= observed) for signs in chosen)
    return (1 + as_large) / (1 + exchanges)


@pytest.mark.parametrize("n", [12, 130, 300])
@pytest.mark.parametrize("size", [0.0, 0.1, 0.4, 3.0])
def test_exchanges_that_can_change_nothing_are_not_made_and_the_p_values_are_those_of_all(n, size, monkeypatch):
    """Effects of no, a few and very many standard errors; rounding of sums aside, the counts are equal."""
    made, original = [], paired._exchanged
    monkeypatch.setattr(paired, "_exchanged", lambda step, *a: made.append(step.shape[1]) or original(step, *a))
    for seed in range(4):
        rng = np.random.default_rng(seed)
        a = rng.normal(size=(n, 3, 4))
        b = a + rng.normal(size * rng.integers(0, 2, (3, 4)), 1.0, size=(n, 3, 4))
        found = paired_difference(measured(a), measured(b), resamples=400)
        step = measured(b).per_image.astype(float) - measured(a).per_image.astype(float)
        expected = by_every_exchange(step, found.settings["exchanges"])
        np.testing.assert_array_equal(found.p, expected)
        assert ((found.p_holm < 0.05) == (holm(expected) < 0.05)).all()
    assert sum(made) < 4 * 12 if n > 100 and size == 3.0 else sum(made) == 4 * 12


def test_hoeffdings_bound_is_above_the_chance_of_all_signs():
    rng = np.random.default_rng(0)
    for effect in (0.0, 0.5, 2.0):
        step = rng.normal(effect, 1.0, size=(10, 5))
        chance = np.exp(paired._log_chance(step))
        assert all(bound >= by_all_signs(column) for bound, column in zip(chance, step.T, strict=True))
    assert paired._log_chance(np.zeros((4, 1))) > 0, "equal runs are always as far apart"


def test_a_number_made_of_means_and_its_mean_over_cells_are_compared_in_one_pass_as_in_two(make_maps):
    a, b = (measure([make_maps(images=30, seed=seed)], [map_cka], bootstrap=0)["map_cka"] for seed in (0, 1))
    telling = np.triu(np.ones(a.mean.shape, bool), 1)
    cells, overall = paired_with_mean(a, b, telling, resamples=300)
    alone = paired_difference(a, b, resamples=300)
    means = (one_number(m, lambda mean: mean[..., telling].mean(-1)) for m in (a, b))
    whole = paired_difference(*means, resamples=300)
    for found, expected in ((cells, alone), (overall, whole)):
        assert (found.axes, found.n_tests, found.settings) == (expected.axes, expected.n_tests, expected.settings)
        for name in ("mean", "ci", "p", "p_holm"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-12)


def test_what_needs_much_for_each_resample_gets_as_many_as_in_measure(make_maps, monkeypatch):
    monkeypatch.setattr(paired, "FUNCTION_SUMS", 1)
    a, b = (measure([make_maps(images=6, seed=seed)], [map_cka], bootstrap=0)["map_cka"] for seed in (0, 1))
    assert paired_difference(a, b).settings["resamples"] == 1000
    assert paired_difference(a, b, resamples=50).settings["resamples"] == 50
    of_means = (measure([make_maps(images=6, seed=seed)], [row_entropy])["row_entropy"] for seed in (0, 1))
    assert paired_difference(*of_means).settings["resamples"] == 10_000


def test_two_equal_runs_do_not_differ_and_the_order_of_images_does_not_matter(make_maps):
    maps = make_maps(images=6)
    same = measure([maps], [row_entropy])["row_entropy"]
    nothing = paired_difference(same, same, resamples=100)
    assert (nothing.mean == 0).all() and (nothing.p == 1).all() and (nothing.p_holm == 1).all()
    other = make_maps(images=6, seed=1)
    backwards = replace(other, values=other.values.flip(0), image_ids=other.image_ids[::-1])
    one, two = (measure([x], [row_entropy])["row_entropy"] for x in (other, backwards))
    first, second = (paired_difference(same, x, resamples=500) for x in (one, two))
    np.testing.assert_allclose(first.mean, second.mean, atol=1e-12)
    np.testing.assert_array_equal(first.p, second.p)


def test_swapping_the_runs_swaps_the_sign():
    rng = np.random.default_rng(1)
    a, b = measured(rng.normal(size=(12, 1, 3))), measured(rng.normal(0.5, 1, size=(12, 1, 3)))
    there, back = paired_difference(a, b, resamples=999), paired_difference(b, a, resamples=999)
    np.testing.assert_allclose(there.mean, -back.mean)
    np.testing.assert_allclose(there.ci, -back.ci[::-1], atol=1e-12)
    np.testing.assert_allclose(there.p, back.p)


def test_runs_that_do_not_differ_are_told_apart_at_the_nominal_rate():
    """A/A: two noisy measurements of the same thing, skewed noise, 600 cells of 24 images."""
    rng = np.random.default_rng(2)
    images = rng.gamma(1, 5, size=(24, 1, 1))
    a, b = (images + rng.exponential(size=(24, 1, 600)) for _ in range(2))
    found = paired_difference(measured(a), measured(b), resamples=999)
    assert 0.03 <= (found.p < 0.05).mean() <= 0.07
    assert (found.p_holm < 0.05).sum() <= 1


def test_an_interval_covers_the_true_difference_in_most_repetitions():
    rng = np.random.default_rng(3)
    a = rng.normal(size=(60, 1, 500))
    found = paired_difference(measured(a), measured(a + rng.gamma(2, 0.2, size=a.shape)), resamples=600)
    assert 0.92 <= ((found.ci[0] <= 0.4) & (found.ci[1] >= 0.4)).mean() <= 0.98


def test_a_symmetric_matrix_is_tested_once_and_not_on_its_diagonal(make_maps):
    runs = [make_maps(images=8, layers=4, seed=seed) for seed in (0, 1)]
    of_layers = [measure([maps], [layer_similarity])["layer_similarity"] for maps in runs]
    found = paired_difference(*of_layers, resamples=199)
    assert found.n_tests == 6
    np.testing.assert_array_equal(found.p_holm, found.p_holm.T)
    assert (np.diagonal(found.p_holm) == 1).all()
    of_heads = [measure([maps], [head_similarity])["head_similarity"] for maps in runs]
    assert paired_difference(*of_heads, resamples=199).n_tests == 4  # four layers of one pair


def test_a_ratio_of_means_is_compared_as_such(make_maps):
    runs = [make_maps(images=9, layers=3, seed=seed) for seed in (0, 1)]
    a, b = (measure([maps], [map_cka])["map_cka"] for maps in runs)
    found = paired_difference(a, b, resamples=199)
    np.testing.assert_allclose(found.mean, b.mean - a.mean, atol=1e-12)
    assert ((found.p > 0) & (found.p <= 1)).all() and (found.ci[0] <= found.ci[1]).all()


def test_many_cells_give_what_few_give(monkeypatch):
    rng = np.random.default_rng(4)
    a, b = (measured(rng.normal(size=(9, 2, 3))) for _ in range(2))
    whole = paired_difference(a, b, resamples=99)
    monkeypatch.setattr("attnprobe.stats.paired.BLOCK_BYTES", 8 * 120)
    pieces = paired_difference(a, b, resamples=99)
    np.testing.assert_allclose(pieces.mean, whole.mean)
    np.testing.assert_allclose(pieces.ci, whole.ci)
    np.testing.assert_array_equal(pieces.p, whole.p)


def test_images_without_a_value_are_left_out_and_cells_without_any_are_unknown():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(2, 8, 1, 2))
    a[3, 0, 0] = b[4, 0, 0] = np.nan
    a[:, 0, 1] = np.nan
    found = paired_difference(measured(a), measured(b), resamples=99)
    kept = [0, 1, 2, 5, 6, 7]
    np.testing.assert_allclose(found.mean[0, 0], (b - a)[kept, 0, 0].mean())
    assert np.isnan(found.mean[0, 1]) and np.isnan(found.p_holm[0, 1]) and np.isnan(found.ci[:, 0, 1]).all()
    assert found.n_tests == 1


@pytest.mark.parametrize(("images", "found"), [(4, False), (8, False), (10, False), (16, True)])
def test_too_few_images_to_find_anything_is_said(images, found):
    """Of n images there are 2^(n-1) exchanges that differ: of 100 cells of 8 images no p-value is below 0.78."""
    rng = np.random.default_rng(6)
    a, b = (measured(x + 10 * k) for k, x in enumerate(rng.normal(size=(2, images, 10, 10))))
    d = paired_difference(a, b)
    np.testing.assert_allclose(d.smallest, min(1, 100 * max(2.0 ** (1 - images), 1 / 10_001)))
    assert (d.smallest < 0.05) == found and (d.p_holm < 0.05).all() == found and (d.p_holm >= 0.5 * d.smallest).all()


def test_the_more_cells_the_more_exchanges_so_that_something_can_be_found(monkeypatch):
    rng = np.random.default_rng(6)
    a, b = (measured(x + k) for k, x in enumerate(rng.normal(size=(2, 40, 24, 24))))
    d = paired_difference(a, b, resamples=100)
    assert d.smallest == pytest.approx(0.025, rel=1e-3) and (d.p_holm < 0.05).any()
    monkeypatch.setattr(paired, "MOST_SUMS", 10**6)
    d = paired_difference(a, b, resamples=100)
    assert d.smallest == 1 and d.settings["exchanges"] == 100


def test_what_cannot_be_compared_is_refused_in_words(make_maps):
    maps = make_maps(images=4)
    one = measure([maps], [row_entropy])["row_entropy"]

    def refused(other, message, kind=InputError):
        with pytest.raises(kind, match=message):
            paired_difference(one, other)

    refused(measure([maps], [layer_similarity])["layer_similarity"], "two numbers of one kind .* not row_entropy")
    refused(measure([make_maps(images=5)], [row_entropy])["row_entropy"], r"different images \(4 and 5; .* more")
    renamed = replace(maps, image_ids=("image0", "image1", "image2", "other"))
    refused(measure([renamed], [row_entropy])["row_entropy"], "'image3' is in one of them only")
    refused(measure([make_maps(images=4, layers=5)], [row_entropy])["row_entropy"], "equal depth and heads", ShapeError)
    refused(measure([make_maps(images=4, cols=4)], [row_entropy])["row_entropy"], "other numbers of tokens or patches")
    refused(replace(one, per_image=None), "too large to keep")
    refused(replace(one, site="effective", is_effective=False), "different matrices")
    alone = measure([make_maps(images=1)], [row_entropy])["row_entropy"]
    with pytest.raises(InputError, match="one image says nothing about others"):
        paired_difference(alone, alone)
    other_patches = replace(maps, grid=replace(maps.grid, patch=(8, 8)))
    with pytest.raises(InputError, match="uniform attention has another attention_distance"):
        paired_difference(*(measure([x], [attention_distance])["attention_distance"] for x in (maps, other_patches)))


def rejected_by_steps(p, level):
    """Holm's procedure in words: the smallest first, until one is not below level / (number left)."""
    left, found = sorted(range(len(p)), key=lambda i: p[i]), set()
    while left and p[left[0]] <= level / len(left):
        found.add(left.pop(0))
    return found


@settings(max_examples=60, deadline=None)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=12), level=st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_the_step_down_procedure_rejects(p, level):
    adjusted = holm(np.array(p))
    assume(not np.isclose(adjusted, level).any())
    assert set(np.flatnonzero(adjusted <= level).tolist()) == rejected_by_steps(p, level)
    assert (adjusted >= np.array(p) - 1e-15).all() and (adjusted <= 1).all()


def test_holm_of_known_values_has_their_shape():
    np.testing.assert_allclose(holm(np.array([[0.01, 0.04], [0.03, 0.005]])), [[0.03, 0.06], [0.06, 0.02]])
    assert holm(np.empty(0)).shape == (0,) and holm(np.array([0.7])).tolist() == [0.7]
