"""Intervals of means hold what they promise, and narrow as a mean over cells does."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from attnprobe.stats.interval import half_width, mean_of
from tests.reports.formulas import measurement


def of(per_image):
    """Row entropies [image, layer, head] as a measurement; their own bounds are those of each cell."""
    m = measurement("row_entropy", per_image.mean(0))
    half = 1.96 * per_image.std(0, ddof=1) / np.sqrt(len(per_image))
    return replace(m, per_image=per_image, n_images=len(per_image), ci=np.stack([m.mean - half, m.mean + half]))


@pytest.mark.parametrize("n", [2, 5, 40])
def test_it_is_students(n):
    values = np.random.default_rng(0).normal(3, 2, size=n)
    low, high = stats.t.interval(0.95, n - 1, values.mean(), stats.sem(values))
    np.testing.assert_allclose(half_width(values.std(ddof=1), np.array(n)), (high - low) / 2)
    assert np.isnan(half_width(np.array(0.0), np.array(1)))


@pytest.mark.parametrize("n", [8, 32])
@pytest.mark.parametrize("common", [0.0, 1.0])
def test_a_mean_over_cells_covers_its_truth_as_often_as_it_says(n, common):
    """Whether images are bright or dark in all cells at once, or each cell scatters on its own."""
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(500):
        values = 2 + rng.normal(size=(n, 6, 4)) + common * rng.normal(size=(n, 1, 1))
        _, low, high = mean_of(of(values), np.ones((6, 4), bool))
        covered.append(low <= 2 <= high)
    assert 0.92 <= np.mean(covered) <= 0.98


def test_one_per_block_over_its_heads_and_images_that_are_not_finite_are_left_out():
    values = np.random.default_rng(0).uniform(1, 2, size=(9, 3, 2))
    values[0, 1, 0] = np.nan
    m = replace(of(values), mean=np.nanmean(values, 0))
    mean, low, high = mean_of(m, np.ones(2, bool))
    assert mean.shape == (3,)
    left = values[1:, 1].mean(-1)
    np.testing.assert_allclose((high - low)[1] / 2, stats.t.ppf(0.975, 7) * stats.sem(left))
    np.testing.assert_allclose((high - low)[0] / 2, stats.t.ppf(0.975, 8) * stats.sem(values[:, 0].mean(-1)))


def test_without_values_of_images_the_cells_bounds_stand_for_it_and_are_wider():
    values = np.random.default_rng(0).uniform(1, 2, size=(20, 3, 2))
    known, unknown = (mean_of(m, np.ones((3, 2), bool)) for m in (of(values), replace(of(values), per_image=None)))
    assert known[0] == unknown[0] and unknown[1] < known[1] < known[2] < unknown[2]


def test_bounds_stay_within_what_is_possible():
    values = np.zeros((3, 1, 1))
    values[0] = 0.3
    _, low, high = mean_of(of(values), np.ones((1, 1), bool))
    assert low == 0 and high > 0.3
