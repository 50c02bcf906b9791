import math

import numpy as np
import pytest

from attnprobe.metrics import bootstrap
from attnprobe.metrics.bootstrap import interval_of_mean, percentile_interval


def by_loops(values, replicates, seed):
    """[resample, cell], drawing image by image."""
    n, cells = values.shape
    drawn = np.random.default_rng(seed).integers(n, size=(replicates, n))
    means = np.empty((replicates, cells))
    for b in range(replicates):
        for c in range(cells):
            finite = [values[i, c] for i in drawn[b] if math.isfinite(values[i, c])]
            means[b, c] = sum(finite) / len(finite) if finite else math.nan
    return means


def middle(values):
    """Bounds by values that occur: 2.5 % of the others lie beyond, rounded down."""
    ordered = sorted(x for x in values if not math.isnan(x))
    if not ordered:
        return math.nan, math.nan
    cut = int(0.025 * (len(ordered) - 1))
    return ordered[cut], ordered[-1 - cut]


def test_equals_resampling_image_by_image():
    values = np.random.default_rng(1).normal(size=(9, 6))
    expected = np.array([middle(column) for column in by_loops(values, 200, seed=3).T]).T
    np.testing.assert_allclose(interval_of_mean(values.reshape(9, 2, 3), 200, seed=3), expected.reshape(2, 2, 3))


def test_values_that_are_not_finite_are_left_out_of_each_resample():
    values = np.random.default_rng(1).normal(size=(4, 3))
    values[0, 0] = np.nan
    values[:3, 1] = np.inf  # some resamples draw no finite value
    values[:, 2] = np.nan
    expected = np.array([middle(column) for column in by_loops(values, 100, seed=0).T]).T
    np.testing.assert_allclose(interval_of_mean(values, 100, seed=0), expected)


@pytest.mark.parametrize("block_bytes", [8, 800, 2**25])
def test_the_size_of_temporaries_does_not_show(monkeypatch, block_bytes):
    values = np.random.default_rng(1).normal(size=(11, 7))
    expected = interval_of_mean(values, 50, seed=0)
    monkeypatch.setattr(bootstrap, "BLOCK_BYTES", block_bytes)
    np.testing.assert_allclose(interval_of_mean(values, 50, seed=0), expected, rtol=1e-12)


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    values = np.random.default_rng(1).normal(size=(20, 2))
    np.testing.assert_array_equal(interval_of_mean(values, 100, 5), interval_of_mean(values, 100, 5))
    assert (interval_of_mean(values, 100, 5) != interval_of_mean(values, 100, 6)).any()


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """400 samples of 60 exponential values, mean 1: the percentile bootstrap covers 92-95 % at this size."""
    samples = np.random.default_rng(7).exponential(size=(60, 400))
    low, high = interval_of_mean(samples, 500, seed=0)
    assert 0.90 <= ((low <= 1) & (high >= 1)).mean() <= 0.97
    normal_half = 1.96 * samples.std(0, ddof=1) / math.sqrt(60)
    assert np.median((high - low) / 2 / normal_half) == pytest.approx(1, abs=0.1)


def test_counts_keep_values_that_occur():
    counts = np.array([[3]] * 30 + [[4]] * 60 + [[5]] * 10)
    np.testing.assert_array_equal(percentile_interval(counts), [[3], [5]])
