"""Poisson counts are what their distribution says, and depend on nothing but seed, name and resample."""

import numpy as np
import pytest
from scipy import stats

from attnprobe.stats.bootstrap import interval_of_mean, percentile_interval
from attnprobe.stats.poisson import REPLICATES, counts

NAMES = [f"photos/{k}.png" for k in range(2000)]


def test_a_count_depends_on_seed_name_and_resample_alone():
    whole = counts(NAMES[:50], 30)
    order = np.random.default_rng(0).permutation(50)
    np.testing.assert_array_equal(counts([NAMES[i] for i in order], 30), whole[:, order])
    np.testing.assert_array_equal(counts(NAMES[:50], 7), whole[:7])
    np.testing.assert_array_equal(counts([NAMES[3], NAMES[3]], 30).T, [whole[:, 3]] * 2)
    assert (counts(NAMES[:50], 30, seed=1) != whole).any()


def test_counts_stay_the_same_for_ever():
    np.testing.assert_array_equal(counts(["val/7"], 12)[:, 0], [1, 0, 1, 1, 0, 3, 1, 2, 0, 1, 2, 1])


def test_counts_have_the_shares_of_a_poisson_variable_and_no_correlation():
    drawn = counts(NAMES, 300)
    seen = np.bincount(drawn.astype(int).ravel(), minlength=7)
    expected = stats.poisson.pmf(np.arange(6), 1) * drawn.size
    expected = np.append(expected, drawn.size - expected.sum())
    assert stats.chisquare(np.append(seen[:6], seen[6:].sum()), expected).pvalue > 1e-3
    for correlations in (np.corrcoef(drawn), np.corrcoef(drawn[:, :300].T)):
        others = correlations[~np.eye(300, dtype=bool)]
        assert abs(others.mean()) < 0.002 and abs(others).max() < 0.35


@pytest.mark.parametrize(("draw", "truth"), [("normal", 0), ("uniform", 0.5), ("exponential", 1)])
def test_the_interval_covers_the_truth_as_often_as_that_of_the_ordinary_bootstrap(draw, truth):
    n, samples = 200, getattr(np.random.default_rng(3), draw)(size=(200, 600))
    weights = counts(NAMES[:n], REPLICATES)
    poisson = percentile_interval(weights @ samples / weights.sum(1)[:, None], n)
    ordinary = interval_of_mean(samples, REPLICATES, seed=0)
    for low, high in (poisson, ordinary):
        assert 0.93 <= ((low <= truth) & (truth <= high)).mean() <= 0.97
    widths = [(high - low) for low, high in (poisson, ordinary)]
    assert np.mean(widths[0] / widths[1]) == pytest.approx(1, abs=0.05)
