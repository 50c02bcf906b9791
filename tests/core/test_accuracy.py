"""Intervals of accuracies hold what they promise, and agree with SciPy where it has them."""

import numpy as np
import pytest
from scipy.stats import binomtest

from attnprobe.core.accuracy import accuracy_difference, accuracy_interval


@pytest.mark.parametrize(("right", "n"), [(0, 10), (7, 10), (10, 10), (450, 500), (1, 1000)])
def test_the_interval_is_wilsons(right, n):
    expected = binomtest(right, n).proportion_ci(method="wilson")
    assert accuracy_interval(right, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_without_images_anything_is_possible():
    assert accuracy_interval(0, 0) == (0.0, 1.0)


def test_only_images_on_which_the_two_disagree_count():
    before, after = np.array([1, 1, 1, 0, 0], bool), np.array([1, 0, 0, 1, 0], bool)
    gained, low, high = accuracy_difference(before, after)
    assert gained == pytest.approx(-0.2) and low < gained < high
    swapped = accuracy_difference(after, before)
    assert swapped == pytest.approx((-gained, -high, -low))


def test_the_interval_covers_the_true_difference_as_often_as_it_says():
    rng = np.random.default_rng(0)
    n, covered = 120, 0
    for _ in range(1000):
        kind = rng.choice(4, size=n, p=[0.78, 0.1, 0.05, 0.07])  # both, first only, second only, none
        _, low, high = accuracy_difference(kind < 2, (kind == 0) | (kind == 2))
        covered += low <= -0.05 <= high
    assert 930 <= covered <= 985


def test_two_that_agree_everywhere_differ_by_zero_give_or_take_a_few_images():
    same = np.ones(100, bool)
    gained, low, high = accuracy_difference(same, same)
    assert gained == 0 and -0.05 < low < 0 < high < 0.05
