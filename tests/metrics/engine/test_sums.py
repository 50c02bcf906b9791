"""Sums over images are those of all images at once, cell by cell, where values are finite."""

import numpy as np
import pytest

from attnprobe.metrics.engine import sums
from attnprobe.metrics.engine.sums import Resampled
from attnprobe.stats.poisson import counts


@pytest.fixture
def values():
    made = np.random.default_rng(0).normal(5, 1, size=(30, 2, 3))
    made[4, 1, 2] = np.nan
    made[:, 0, 0] = np.inf
    return made


def test_means_of_resamples_are_weighted_means_over_finite_values(values):
    drawn = counts([str(i) for i in range(30)], 8)
    parts = [Resampled.of(values[cut], drawn[:, cut]) for cut in (slice(0, 7), slice(7, 8), slice(8, 30))]
    found = parts[0].merge(parts[1]).merge(parts[2]).means()
    for b in range(8):
        for cell in np.ndindex(2, 3):
            finite = [i for i in range(30) if np.isfinite(values[i, *cell])]
            weight = sum(drawn[b, i] for i in finite)
            expected = sum(drawn[b, i] * values[i, *cell] for i in finite) / weight if weight else np.nan
            assert found[b, *cell] == pytest.approx(expected, nan_ok=True)


def test_sums_of_one_metric_are_bounded_and_too_few_resamples_are_none(monkeypatch):
    monkeypatch.setattr(sums, "RESAMPLED_BYTES", 8 * 1000 * 400)
    assert [Resampled.replicates(cells, 400) for cells in (1, 1000, 2000, 4000, 4001)] == [400, 400, 200, 100, 0]
