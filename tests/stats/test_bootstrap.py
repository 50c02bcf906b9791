import math
import tracemalloc

import numpy as np
import pytest
from scipy import stats

from attnprobe.stats import bootstrap
from attnprobe.stats.bootstrap import interval_of_mean, percentile_interval, tail, values_of_function


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


def middle(values, n):
    """Bounds by values that occur: of the others so many lie beyond as for Student's t, rounded down."""
    ordered = sorted(x for x in values if not math.isnan(x))
    if not ordered:
        return math.nan, math.nan
    share = stats.norm.sf(stats.t.ppf(0.975, n - 1) / math.sqrt((n - 1) / n))
    cut = int(share * (len(ordered) - 1))
    return ordered[cut], ordered[-1 - cut]


def test_equals_resampling_image_by_image():
    values = np.random.default_rng(1).normal(size=(9, 6))
    expected = np.array([middle(column, 9) for column in by_loops(values, 200, seed=3).T]).T
    np.testing.assert_allclose(interval_of_mean(values.reshape(9, 2, 3), 200, seed=3), expected.reshape(2, 2, 3))


def test_values_that_are_not_finite_are_left_out_of_each_resample():
    values = np.random.default_rng(1).normal(size=(4, 3))
    values[0, 0] = np.nan
    values[:3, 1] = np.inf  # some resamples draw no finite value
    values[:, 2] = np.nan
    expected = np.array([middle(column, 4) for column in by_loops(values, 100, seed=0).T]).T
    np.testing.assert_allclose(interval_of_mean(values, 100, seed=0), expected)


@pytest.mark.parametrize("block_bytes", [8, 800, 2**25])
def test_the_size_of_temporaries_does_not_show(monkeypatch, block_bytes):
    values = np.random.default_rng(1).normal(size=(11, 7))
    expected = interval_of_mean(values, 50, seed=0)
    monkeypatch.setattr(bootstrap, "BLOCK_BYTES", block_bytes)
    np.testing.assert_allclose(interval_of_mean(values, 50, seed=0), expected, rtol=1e-12)


@pytest.mark.parametrize("missing", [False, True])
def test_a_function_of_the_means_takes_blocks_of_memory_beside_the_values_and_no_copy_of_them(monkeypatch, missing):
    values = np.random.default_rng(1).normal(size=(64, 4, 20_000)).astype(np.float32)
    if missing:
        values[3, 1, 5::7] = np.nan

    def function(means, _n_images):
        return means[:, :, ::2000].sum(1)

    expected = values_of_function(function, values, 20, seed=0)
    monkeypatch.setattr(bootstrap, "BLOCK_BYTES", 2**20)
    tracemalloc.start()
    found = values_of_function(function, values, 20, seed=0)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert peak < 8 * 2**20 < values.nbytes


def test_the_same_seed_gives_the_same_interval_and_another_does_not():
    values = np.random.default_rng(1).normal(size=(20, 2))
    np.testing.assert_array_equal(interval_of_mean(values, 100, 5), interval_of_mean(values, 100, 5))
    assert (interval_of_mean(values, 100, 5) != interval_of_mean(values, 100, 6)).any()


@pytest.mark.parametrize(("draw", "truth"), [("normal", 0), ("uniform", 0.5), ("exponential", 1)])
@pytest.mark.parametrize("n", [8, 16, 60])
def test_the_interval_covers_the_truth_as_often_as_it_says(draw, truth, n):
    samples = getattr(np.random.default_rng(7), draw)(size=(n, 500))
    low, high = interval_of_mean(samples, 1000, seed=0)
    skewed_and_few = draw == "exponential" and n < 32  # what a report warns of
    assert (0.88 if skewed_and_few else 0.92) <= ((low <= truth) & (high >= truth)).mean() <= 0.98


def test_of_many_images_it_is_that_of_the_normal_distribution():
    samples = np.random.default_rng(7).exponential(size=(1000, 40))
    low, high = interval_of_mean(samples, 2000, seed=0)
    half = 1.96 * samples.std(0, ddof=1) / math.sqrt(1000)
    assert np.median((high - low) / 2 / half) == pytest.approx(1, abs=0.03)
    assert tail(10**9) == pytest.approx(0.025) and tail(2) < 1e-6


def test_bounds_are_values_that_occur():
    counts = np.array([[3]] * 30 + [[4]] * 60 + [[5]] * 10)
    np.testing.assert_array_equal(percentile_interval(counts, 100), [[3], [5]])
