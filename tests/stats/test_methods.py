"""Methods of several runs: cell by cell, corrected for their number, also of numbers that are no means."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from attnprobe.core.errors import InputError
from attnprobe.stats import methods
from attnprobe.stats.methods import difference_of_methods
from attnprobe.stats.paired import holm
from tests.reports.formulas import measurement


def run(per_image, **changes):
    """Row entropies [image, layer, head]."""
    m = measurement("row_entropy", per_image.mean(0))
    ids = tuple(f"image{i}" for i in range(len(per_image)))
    return replace(m, per_image=per_image, image_ids=ids, n_images=len(ids), **changes)


@pytest.fixture
def values():
    """[run, image, layer, head] of two methods."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(3, 10, 4, 2)), rng.normal(size=(4, 10, 4, 2)) + 0.3 * rng.normal(size=(4, 1, 4, 2))


@pytest.mark.parametrize("block_bytes", [8, 2**25])
def test_cells_are_those_of_the_runs_means_and_corrected(values, monkeypatch, block_bytes):
    monkeypatch.setattr(methods, "BLOCK_BYTES", block_bytes)
    first, second = values
    found = difference_of_methods([run(x) for x in first], [run(x) for x in second])
    np.testing.assert_allclose(found.mean, second.mean((0, 1)) - first.mean((0, 1)))
    np.testing.assert_allclose(found.p_holm, holm(found.p))
    pooled = np.sqrt((2 * first.mean(1).var(0, ddof=1) + 3 * second.mean(1).var(0, ddof=1)) / 5)
    np.testing.assert_allclose(found.effect, found.mean / pooled)
    assert found.n_runs == (3, 4) and found.n_images == 10 and found.n_tests == 8


def test_images_in_another_order_are_put_in_that_of_the_first(values):
    first, second = values
    plain = difference_of_methods([run(x) for x in first], [run(x) for x in second])
    turned = [replace(run(x[::-1]), image_ids=tuple(f"image{i}" for i in range(9, -1, -1))) for x in second]
    np.testing.assert_allclose(difference_of_methods([run(x) for x in first], turned).ci, plain.ci)


def test_a_number_that_is_no_mean_has_the_interval_of_the_one_it_is_linear_in(values):
    """Twice the mean, made by `from_mean`: as twice the mean of the values, up to the chance of resampling."""
    first, second = ([run(x) for x in side] for side in values)
    plain = difference_of_methods(first, second)
    made = [[replace(m, from_mean=lambda mean, n: 2 * mean) for m in side] for side in (first, second)]
    found = difference_of_methods(*made, resamples=4000)
    np.testing.assert_allclose(found.mean, 2 * plain.mean)
    np.testing.assert_allclose(found.ci, 2 * plain.ci, atol=0.1 * np.ptp(2 * plain.ci))


def test_one_run_and_other_settings_are_refused(values):
    first, second = ([run(x) for x in side] for side in values)
    with pytest.raises(InputError, match="needs two runs"):
        difference_of_methods(first[:1], second)
    other = replace(second[2], settings={**second[2].settings, "renormalize": True})
    with pytest.raises(InputError, match="with the same settings"):
        difference_of_methods(first, [*second[:2], other])


def test_splits_of_runs_of_one_method_are_rarely_called_different():
    """All splits 2 against 3 of five runs whose variance dwarfs that of images; Welch's test has 3 to 4 %."""
    rng = np.random.default_rng(0)
    runs = rng.normal(size=(5, 1, 2000)) + 0.3 * rng.normal(size=(5, 30, 2000))
    excluded, welch = [], []
    for two in ((i, j) for i in range(5) for j in range(i)):
        sides = [runs[[k for k in range(5) if (k in two) == inside]] for inside in (True, False)]
        found = difference_of_methods(*([run(x[..., None]) for x in side] for side in sides))
        excluded.append((found.ci[0] > 0) | (found.ci[1] < 0))
        welch.append(stats.ttest_ind(*(side.mean(1) for side in sides), equal_var=False).pvalue < 0.05)
    assert 0.03 <= np.mean(excluded) <= 0.08
    assert np.mean(excluded) == pytest.approx(np.mean(welch), abs=0.01)


def test_a_difference_between_numbers_from_0_to_1_has_no_interval_beyond_1():
    """Of two runs each, one at an end of the range, Student's t reaches further."""
    values = np.random.default_rng(0).random((4, 10, 4, 2))
    values[0], values[3] = values[0] / 10, 1 - values[3] / 10
    bounded, free = ([run(x, value_range=ends) for x in values] for ends in ((0.0, 1.0), (0.0, None)))
    narrow, wide = (difference_of_methods(runs[:2], runs[2:]).ci for runs in (bounded, free))
    assert np.abs(wide).max() > 1
    np.testing.assert_array_equal(narrow, wide.clip(-1, 1))
