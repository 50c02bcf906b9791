import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from attnprobe.metrics.engine.collected import Collected, Moments


def collect(parts, **options):
    collected = Collected(**options)
    for part in parts:
        collected.add(part)
    return collected


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    cuts=st.lists(st.integers(1, 39), max_size=5),
    keep=st.sampled_from([0, 100, 800, 2**20]),
    offset=st.sampled_from([0.0, 1e6]),
)
def test_sums_equal_kept_values_however_they_come(seed, cuts, keep, offset):
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(40, 2, 3)) + offset
    values[rng.random(values.shape) < 0.1] = np.nan
    values[:, 0, 0] = np.inf
    collected = collect(np.split(values, sorted(set(cuts))), keep_bytes=keep)
    assert (collected.per_image is None) == (keep < values.nbytes)
    mean, std = collected.moments().mean_and_std()
    finite = np.where(np.isfinite(values), values, np.nan)
    expected = [[column[np.isfinite(column)] for column in finite.reshape(40, -1).T][i] for i in range(6)]
    np.testing.assert_allclose(mean.ravel()[1:], [v.mean() for v in expected[1:]], rtol=1e-12)
    np.testing.assert_allclose(std.ravel()[1:], [v.std(ddof=1) for v in expected[1:]], rtol=1e-8)
    assert np.isnan(mean[0, 0]) and np.isnan(std[0, 0])
    assert collected.n_images == 40 and collected.n_excluded == 40


def test_images_with_a_value_that_is_not_finite_are_counted_once():
    values = np.ones((5, 2, 2))
    values[1] = np.nan
    values[3, 0, 1] = -np.inf
    assert collect([values[:2], values[2:]]).n_excluded == 2


def test_one_value_has_a_mean_and_no_spread():
    moments = Moments.of(np.array([[2.0, np.nan]]))
    mean, std = moments.mean_and_std()
    np.testing.assert_array_equal(mean, [2, np.nan])
    assert np.isnan(std).all() and np.isnan(moments.normal_interval()).all()


def test_the_normal_interval_is_that_of_students_t():
    values = np.random.default_rng(0).normal(3, 2, size=(400, 1))
    low, high = Moments.of(values).normal_interval()
    assert (low + high) / 2 == pytest.approx(values.mean())
    assert (high - low) / 2 == pytest.approx(stats.t.ppf(0.975, 399) * values.std(ddof=1) / 20)
