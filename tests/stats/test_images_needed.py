import math

import numpy as np
import pytest
import torch
from scipy import stats

from attnprobe.core.errors import InputError
from attnprobe.metrics import map_cka, measure, row_entropy, similar_blocks
from attnprobe.stats.bootstrap import interval_of_mean
from attnprobe.stats.images_needed import images_needed
from tests.metrics.test_similar_blocks import blocks
from tests.stats.test_paired import measured


def test_the_interval_of_a_mean_narrows_with_the_root_of_the_number_of_images():
    values = np.random.default_rng(0).normal(3, 2, size=(64, 1, 1))
    found = images_needed(measured(values), resamples=4000)
    assert found.sizes == (8, 16, 32, 64, 128, 256) and found.n_images == 64
    half = (found.high - found.low) / 2
    sizes = np.array(found.sizes)
    student = stats.t.ppf(0.975, sizes - 1) * np.sqrt(sizes / (sizes - 1))
    np.testing.assert_allclose(half, student * values.std() / np.sqrt(sizes), rtol=0.06)
    np.testing.assert_allclose(found.value, values.mean())


def test_of_as_many_images_as_there_are_it_is_the_interval_of_the_measurement(make_maps):
    m = measure([make_maps(images=20, layers=1, heads=1)], [row_entropy], bootstrap=500, seed=3)["row_entropy"]
    found = images_needed(m, sizes=[20], resamples=500, seed=3)
    np.testing.assert_allclose([found.low[0], found.high[0]], m.ci[:, 0, 0])


def test_of_similar_blocks_it_is_the_count_and_any_other_number_can_be_asked_for():
    maps = blocks("AAB", images=12)
    maps.values[:5, 1] = blocks("AAB", images=12, seed=1).values[:5, 1]  # block 2 repeats block 1 in 7 of 12 images
    m = measure([maps], [similar_blocks.with_settings(rho=0.5)])["similar_blocks"]
    found = images_needed(m, sizes=[8, 400])
    assert found.value == 1 and found.low.tolist() == [0, 1] and found.high.tolist() == [1, 1]
    row = m.coords["threshold"].index(0.9)
    of_block = images_needed(m, lambda means: means[:, row, 1], sizes=[400])
    np.testing.assert_allclose(of_block.value, m.summary["ratio"][1])


def test_a_ratio_of_means_is_asked_for_as_such(make_maps):
    m = measure([make_maps(images=10)], [map_cka])["map_cka"]
    found = images_needed(m, lambda cka: cka[:, 0, 1], sizes=[10], resamples=200)
    np.testing.assert_allclose(found.value, m.mean[0, 1])
    assert found.low[0] < found.value < found.high[0]


def test_what_cannot_be_answered_is_refused(make_maps):
    alone = measure([make_maps(images=1)], [row_entropy])["row_entropy"]
    with pytest.raises(InputError, match="row_entropy: the values of two or more images"):
        images_needed(alone)
    with pytest.raises(InputError, match="at least 1"):
        images_needed(measure([make_maps(images=3)], [row_entropy])["row_entropy"], sizes=[0, 8])


def test_intervals_cover_a_known_population_mean_in_most_repetitions():
    """Rows uniform over 1 to 6 of 6 tokens, each equally often: the mean entropy is that of ln 1 ... ln 6."""
    rng = np.random.default_rng(0)
    population = sum(math.log(n) for n in range(1, 7)) / 6
    n_tokens = rng.integers(1, 7, size=(50, 500))
    rows = (np.arange(6) < n_tokens[..., None]) / n_tokens[..., None]
    values = torch.from_numpy(rows)[:, :, None, None]  # 500 repetitions of 50 images, one to a layer
    entropy = row_entropy(values)
    low, high = interval_of_mean(entropy.numpy(), 1000, 0)
    assert 0.92 <= ((low <= population) & (population <= high)).mean() <= 0.98
