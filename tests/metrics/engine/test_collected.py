import math
from dataclasses import replace
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from attnprobe.core.maps import TokenGrid
from attnprobe.metrics import METRICS, SLOW, attention_distance, measure, row_entropy
from attnprobe.metrics.engine import collected as engine
from attnprobe.metrics.engine.collected import Collected, Moments


def collect(parts, keep_bytes=engine.KEEP_BYTES):
    made = Collected()
    with mock.patch.object(engine, "KEEP_BYTES", keep_bytes):
        for part in parts:
            made.add(part)
    return made


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


OF_MAPS = [name for name, metric in METRICS.items() if "maps" in metric.parameters]
OF_TOKENS = [name for name, metric in METRICS.items() if "tokens" in metric.parameters]


def arguments(metric, maps, seed=0):
    """What the metric takes, its maps being these."""
    generator = torch.Generator().manual_seed(seed)
    shape = maps.values.shape
    vectors = torch.randn(*shape[:3], shape[-1], 4, generator=generator, dtype=torch.float64)
    given = {"maps": maps.values, "grid": maps.grid, "value_vectors": vectors}
    return {name: given[name] for name in given if name in metric.parameters}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("name", OF_MAPS)
def test_no_metric_hides_what_is_not_finite_nor_lets_it_spread_to_other_images(make_maps, name, bad):
    maps = make_maps(images=3)
    clean = METRICS[name](**arguments(METRICS[name], maps))
    maps.values[1, 1, 1, 4] = bad
    dirty = METRICS[name](**arguments(METRICS[name], maps))
    assert not dirty[1].isfinite().all()
    torch.testing.assert_close(dirty[[0, 2]], clean[[0, 2]])


@pytest.mark.parametrize("name", OF_TOKENS)
def test_nor_of_tokens(name):
    grid = TokenGrid(2, 3)
    tokens = torch.randn(3, 2, 7, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tokens[1, 1, 4, 2] = math.nan
    given = {"tokens": tokens, "grid": grid}
    metric = METRICS[name]
    values = metric(**{key: given[key] for key in given if key in metric.parameters})
    assert not values[1].isfinite().all() and values[[0, 2]].isfinite().all()


def test_the_map_is_named_by_image_block_and_head(make_maps):
    maps = replace(make_maps(images=5), layers=("blocks.0.attn", "blocks.1.attn", "blocks.2.attn"))
    maps.values[3, 1, 0, 2, 2] = math.inf
    maps.values[4] = math.nan
    m = measure([maps.images(0, 2), maps.images(2, 5)], [row_entropy])["row_entropy"]
    assert m.not_finite[0] == "image image3, block 2 (blocks.1.attn), head 1"
    assert m.not_finite[1] == "image image4, block 1 (blocks.0.attn), head 1" and len(m.not_finite) == 3
    assert m.n_excluded == 2 and np.isfinite(m.mean).all() and np.isfinite(m.ci).all()
    assert m.baselines["uniform"].not_finite == ()


def test_a_value_that_does_not_exist_accuses_no_map(make_maps):
    maps = make_maps()
    maps.values[0, 0, 0] = 0
    maps.values[0, 0, 0, :, 0] = 1  # attends to no patch
    m = measure([maps], [attention_distance])["attention_distance"]
    assert m.n_excluded == 1 and m.not_finite == ()


@pytest.mark.parametrize("size", [{"images": 1}, {"layers": 1}, {"heads": 1}, {"images": 1, "layers": 1, "heads": 1}])
def test_one_of_anything_is_measured_without_an_error(make_maps, size):
    maps = make_maps(**size)
    tokens = torch.randn(*maps.values.shape[:2], 7, 5, generator=torch.Generator().manual_seed(0))
    wanted = [METRICS[name] for name in METRICS if name not in SLOW and "value_vectors" not in METRICS[name].parameters]
    result = measure([replace(maps, tokens=tokens.double())], wanted, bootstrap=20)
    for name, m in result.items():
        of_pairs = name in ("position_share", "content_overlap", "image_similarity")
        assert np.isfinite(m.mean).all() or (of_pairs and m.n_images == 1), name
        assert np.isnan(m.ci).all() == (m.n_images == 1), name
