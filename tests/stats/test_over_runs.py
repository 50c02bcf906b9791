"""Intervals over runs and images: equal to textbook tests where these hold, and covering what they promise."""

import numpy as np
import pytest
from scipy import stats

from attnprobe.stats.over_runs import Runs, estimate, scatter_of_mean


def of(values):
    """[run, image, *cells] -> its means as `Runs`."""
    return Runs(*scatter_of_mean(values), values.shape[1])


def difference(first, second):
    return estimate(of(second), of(first))


def by_loops(first, second):
    """Mean, error, degrees of freedom of one cell, from the mean squares of each table [run, image]."""
    n_images = first.shape[1]
    variance, spread, residual = 0.0, 0.0, []
    for table in (first, second):
        runs = len(table)
        of_runs = np.var([table[r].mean() for r in range(runs)], ddof=1) / runs
        variance += of_runs
        spread += of_runs**2 / (runs - 1)
        rest = sum(
            (table[r, i] - table[r].mean() - table[:, i].mean() + table.mean()) ** 2
            for r in range(runs)
            for i in range(n_images)
        ) / ((runs - 1) * (n_images - 1))
        residual.append((rest / runs / n_images, (runs - 1) * (n_images - 1)))
    by_image = np.var([second[:, i].mean() - first[:, i].mean() for i in range(n_images)], ddof=1) / n_images
    common = by_image - sum(part for part, _ in residual)
    if common > 0:
        variance += common
        spread += by_image**2 / (n_images - 1) + sum(part**2 / df for part, df in residual)
    return second.mean() - first.mean(), variance**0.5, variance**2 / spread


@pytest.mark.parametrize("together", [0.0, 3.0])
def test_it_is_that_of_the_mean_squares(together):
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(3, 7, 20)), rng.normal(size=(4, 7, 20)) + together * rng.normal(size=(7, 20))
    found = difference(first, second)
    for cell in range(20):
        mean, error, df = by_loops(first[..., cell], second[..., cell])
        np.testing.assert_allclose(found.ci[:, cell], stats.t.interval(0.95, df, mean, error), rtol=1e-9)
        np.testing.assert_allclose(found.p[cell], 2 * stats.t.sf(abs(mean) / error, df), rtol=1e-9)


def test_where_images_do_nothing_it_is_welchs_test():
    rng = np.random.default_rng(0)
    first, second = (np.repeat(rng.normal(size=(n, 1, 9)), 6, axis=1) for n in (3, 5))
    found, welch = difference(first, second), stats.ttest_ind(second[:, 0], first[:, 0], equal_var=False)
    np.testing.assert_allclose(found.p, welch.pvalue)
    np.testing.assert_allclose(found.ci, welch.confidence_interval(0.95))
    one = estimate(of(first))
    np.testing.assert_allclose(one.ci, stats.t.interval(0.95, 2, first[:, 0].mean(0), stats.sem(first[:, 0])))
    pooled = np.sqrt((2 * first[:, 0].var(0, ddof=1) + 4 * second[:, 0].var(0, ddof=1)) / 6)
    np.testing.assert_allclose(found.run_std, pooled)


def test_where_runs_are_equal_it_is_the_paired_test_over_images():
    rng = np.random.default_rng(0)
    first, second = (np.repeat(rng.normal(size=(1, 12, 4)), 3, axis=0) for _ in range(2))
    found, paired = difference(first, second), stats.ttest_rel(second[0], first[0])
    np.testing.assert_allclose(found.p, paired.pvalue)
    np.testing.assert_allclose(found.ci, paired.confidence_interval(0.95))


def test_equal_methods_do_not_differ_and_what_is_not_finite_is_left_out():
    values = np.random.default_rng(0).normal(size=(3, 5, 3))
    same = difference(values[:2], values[:2])
    assert (same.mean == 0).all() and (same.p == 1).all()
    constant = difference(np.zeros((2, 4, 1)), np.ones((2, 4, 1)))
    assert constant.p == 0 and (constant.ci == 1).all()
    holes = values.copy()
    holes[1, 2, 0], holes[:, :, 1] = np.nan, np.inf
    both, kept = np.concatenate([holes, values]), [0, 1, 3, 4]
    mean, scatter = scatter_of_mean(both)
    found = estimate(Runs(mean[3:], scatter[3:], 5), Runs(mean[:3], scatter[:3], 5))
    np.testing.assert_allclose(mean[:, 0], both[:, kept, 0].mean(1))
    assert np.isnan(found.p[1]) and np.isnan(found.ci[:, 1]).all() and np.isfinite(found.p[[0, 2]]).all()


@pytest.mark.parametrize("runs", [(2, 3), (3, 3), (5, 5)])
@pytest.mark.parametrize(
    ("run", "method", "rest"), [((1, 1), 0, 1), ((1, 1), 2, 1), ((1, 3), 1, 1), ((0.1, 0.1), 3, 1)]
)
def test_it_covers_a_known_difference_as_often_as_it_says(runs, run, method, rest):
    """Standard deviations of runs of either method, of what images do to a method, and of what is left."""
    rng, n_images, repetitions = np.random.default_rng(3), 32, 4000
    of_images = method * rng.normal(size=(1, n_images, repetitions))
    first, second = (
        std * rng.normal(size=(n, 1, repetitions)) + rest * rng.normal(size=(n, n_images, repetitions))
        for n, std in zip(runs, run, strict=True)
    )
    low, high = difference(first, second + of_images + 0.7).ci
    assert 0.93 <= ((low <= 0.7) & (high >= 0.7)).mean() <= 0.97
