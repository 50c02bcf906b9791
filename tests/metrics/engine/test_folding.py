"""Folded measurements: means of all images, intervals of Poisson resamples, values of a fixed subset."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attnprobe.metrics import measure
from attnprobe.metrics.engine import collected
from attnprobe.metrics.engine.folding import Folding
from attnprobe.metrics.engine.slices import measure_slice, measure_slices, merge_slices
from attnprobe.metrics.head_types import head_types
from attnprobe.stats.alignment import at_images
from attnprobe.stats.bootstrap import percentile_interval, resampled_means
from attnprobe.stats.images_needed import images_needed
from attnprobe.stats.interval import mean_of
from attnprobe.stats.paired import paired_difference
from attnprobe.stats.poisson import REPLICATES, counts, hashed

NAMES = ("row_entropy", "layer_similarity", "similar_blocks", "map_cka", "prefix_mass")


@pytest.fixture
def maps(make_maps):
    made = make_maps(images=60, layers=3)
    made.values[17, 1, 0] = torch.nan
    return made


def folded(maps, keep, *, size=10, group=None, names=NAMES, others=()):
    """Measured in slices of `size`, merged in pairs."""
    rule = Folding.of((*maps.image_ids, *others), keep, group)
    cuts = [maps.images(i, min(i + size, maps.n_images)) for i in range(0, maps.n_images, size)]
    slices = [measure_slice([cut], names, rule) for cut in cuts]
    pairs = [merge_slices(slices[i : i + 2]) for i in range(0, len(slices), 2)]
    return measure_slices(pairs, names, group=group)


def test_means_are_those_of_all_images_and_intervals_those_of_weighted_means(maps):
    whole, found = measure([maps], NAMES, bootstrap=REPLICATES), folded(maps, 20)
    drawn = counts(maps.image_ids, REPLICATES)
    for name, m in found.items():
        np.testing.assert_allclose(m.mean, whole[name].mean, rtol=1e-12)
        np.testing.assert_allclose(m.std, whole[name].std, rtol=1e-9)
        assert (m.n_images, m.n_excluded, m.not_finite) == (60, 1, whole[name].not_finite)
        uniform, expected = m.baselines["uniform"], whole[name].baselines["uniform"]
        assert uniform.n_images == expected.n_images == 1 and uniform.replicates is None
        np.testing.assert_array_equal(uniform.mean, expected.mean)
        values = whole[name].per_image
        finite = np.isfinite(values).reshape(60, -1).astype(float)
        total = drawn @ np.where(np.isfinite(values), values, 0).reshape(60, -1)
        means = (total / (drawn @ finite)).reshape(REPLICATES, *values.shape[1:])
        np.testing.assert_allclose(m.replicates, means, rtol=1e-9)
        if m.from_mean is None:
            np.testing.assert_allclose(m.ci, percentile_interval(means, 60), rtol=1e-9)
        widths = [ci[1] - ci[0] for ci in (m.ci, whole[name].ci)]
        usual = widths[1] > 1e-3
        assert np.median(widths[0][usual] / widths[1][usual]) == pytest.approx(1, abs=0.15)
        assert (m.settings["interval"], m.settings["bootstrap"]) == ("poisson", REPLICATES)


def test_kept_images_are_those_with_the_smallest_hashes_whatever_else_was_measured(maps):
    m = folded(maps, 20)["row_entropy"]
    ranked = sorted(maps.image_ids, key=hashed)[:20]
    assert set(m.image_ids) == set(ranked) and len(m.per_image) == 20
    whole = measure([maps], ["row_entropy"])["row_entropy"]
    np.testing.assert_array_equal(m.per_image, at_images(whole, m.image_ids).per_image)
    more = folded(maps, 20, others=("other/1", "other/2", "other/3"))["row_entropy"]
    assert len(set(more.image_ids) & set(ranked)) >= 17


def test_two_models_are_compared_on_the_images_kept_of_both(make_maps):
    one, two = (folded(make_maps(images=60, seed=seed), 25) for seed in (0, 1))
    first, second = (m["row_entropy"] for m in (one, two))
    assert first.image_ids == second.image_ids
    found = paired_difference(at_images(first, first.image_ids), at_images(second, first.image_ids), resamples=200)
    np.testing.assert_allclose(found.mean, (second.per_image - first.per_image).mean(0))
    assert found.n_images == 25


def test_a_slice_has_the_same_bytes_whenever_it_is_measured(maps):
    rule = Folding.of(maps.image_ids, 20)
    slices = [measure_slice([maps.images(10 * k, 10 * k + 10)], NAMES, rule) for k in range(6)]
    again = [measure_slice([maps.images(10 * k, 10 * k + 10)], NAMES, rule) for k in reversed(range(6))]
    assert slices == again[::-1] and merge_slices(slices) == merge_slices(again[::-1])


def test_a_group_is_drawn_and_kept_as_a_whole(make_maps):
    maps = make_maps(images=48)
    ids = tuple(f"photo{i // 8}_{i % 8}" for i in range(48))
    maps = replace(maps, image_ids=ids, values=maps.values[torch.arange(48) // 8])
    found = folded(maps, 4, group="^(.+)_")["row_entropy"]
    assert (found.n_images, found.n_grouped, len(found.per_image)) == (6, 48, 4)
    values = measure([maps], ["row_entropy"])["row_entropy"].per_image
    drawn = counts([name.partition("_")[0] for name in ids], REPLICATES)
    means = np.einsum("bi,ilh->blh", drawn, values) / drawn.sum(1)[:, None, None]
    np.testing.assert_allclose(found.replicates, means)
    np.testing.assert_allclose(found.ci, percentile_interval(means, 6))


def test_copies_count_among_all_images_and_once_among_those_kept(make_maps):
    maps = replace(make_maps(images=20), pixels=torch.ones(20, dtype=torch.int64))
    m = folded(maps, 5)["row_entropy"]
    assert (m.n_images, len(m.per_image), m.copies) == (20, 1, ())


def test_what_rests_on_resamples_takes_those_that_were_drawn(maps):
    m = folded(maps, 20)["row_entropy"]
    np.testing.assert_array_equal(resampled_means(m, at_most=7), m.replicates[:7])
    mean, low, high = mean_of(m, np.ones(m.mean.shape[1], bool))
    whole = measure([maps], ["row_entropy"])["row_entropy"]
    expected = mean_of(whole, np.ones(m.mean.shape[1], bool))
    np.testing.assert_allclose(mean, expected[0])
    np.testing.assert_allclose(high - low, expected[2] - expected[1], rtol=0.15)
    assert images_needed(m).sizes[-1] == 64, "from the 20 that were kept"
    names = ("row_entropy", "sink_mass", "attention_distance", "own_row_mass", "own_column_mass", "position_share")
    types = head_types(folded(maps, 20, names=names))
    assert types.n_images == 60 and np.allclose(types.mean.sum(-1), 1)


def test_a_metric_with_too_many_cells_has_moments_alone(maps, monkeypatch):
    from attnprobe.metrics.engine import sums

    monkeypatch.setattr(sums, "RESAMPLED_BYTES", 1000)
    monkeypatch.setattr(collected, "KEEP_BYTES", 1000)
    found = folded(maps, 20, names=("layer_similarity", "map_cka"))
    assert found["layer_similarity"].per_image is None and found["layer_similarity"].replicates is None
    assert (
        found["layer_similarity"].settings["interval"] == "normal" and found["map_cka"].settings["interval"] == "none"
    )
    whole = measure([maps], ["layer_similarity", "map_cka"], bootstrap=0)
    np.testing.assert_allclose(found["layer_similarity"].ci, whole["layer_similarity"].ci, rtol=1e-9)
    np.testing.assert_allclose(found["map_cka"].mean, whole["map_cka"].mean, rtol=1e-9)
