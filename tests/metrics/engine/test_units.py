"""Copies count once, groups count once, and what only looks like copies is told."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.metrics import measure, row_entropy
from attnprobe.metrics.engine.collected import Collected
from attnprobe.metrics.engine.slices import measure_slice, measure_slices
from attnprobe.metrics.engine.units import STEM, Units, alike_in_words, copies_in_words
from attnprobe.stats.bootstrap import interval_of_mean
from tests.reports.formulas import measurement


def collected(values):
    found = Collected()
    found.add(values)
    return found


def test_of_images_with_equal_pixels_the_first_is_kept():
    units = Units.of(("a", "b", "c", "d", "e"), (5, 7, 5, 0, 0))
    assert units.ids == ("a", "b", "d", "e") and units.copies == ("c = a",)
    values = np.arange(10.0).reshape(5, 2)
    np.testing.assert_array_equal(units.collected(collected(values)).per_image, values[[0, 1, 3, 4]])


def test_a_group_is_the_mean_of_its_images_each_once():
    ids, pixels = ("a_1", "b_1", "a_2", "a_3", "alone"), (1, 2, 3, 1, 4)
    units = Units.of(ids, pixels, "^(.+)_")
    values = np.random.default_rng(0).normal(size=(5, 3))
    values[2, 1] = np.nan
    found = units.collected(collected(values)).per_image
    expected = [np.nanmean(values[[0, 2]], axis=0), values[1], values[4]]  # a_3 is a_1 again
    np.testing.assert_allclose(found, expected)
    assert units.ids == ("a", "b", "alone") and units.copies == ("a_3 = a_1",)
    other = Units.of(("a_1", "a_2"), (1, 9), "^(.+)_")
    assert units.pixels[1:] == (2, 4) and units.pixels[0] != other.pixels[0]


def test_a_pattern_that_names_no_group_is_refused():
    for pattern, said in (("(", "no regular expression"), ("^a", "in brackets"), ("^(x)_", "matches no image id")):
        with pytest.raises(InputError, match=said):
            Units.of(("a_1", "b_1"), (0, 0), pattern)


@pytest.fixture
def twice(make_maps):
    """Maps of eight images, of which the last three are the first again."""
    maps = make_maps(images=8)
    values = torch.cat([maps.values[:5], maps.values[:3]])
    return replace(maps, values=values, pixels=torch.tensor([1, 2, 3, 4, 5, 1, 2, 3]))


def test_a_measurement_with_copies_is_the_one_without_them(twice):
    once = measure([twice.images(0, 5)], [row_entropy])["row_entropy"]
    found = measure([twice], [row_entropy])["row_entropy"]
    np.testing.assert_array_equal(found.ci, once.ci)
    np.testing.assert_array_equal(found.mean, once.mean)
    assert found.n_images == 5 and found.image_ids == once.image_ids and found.pixels == (1, 2, 3, 4, 5)
    assert copies_in_words(found) == (
        "3 images are copies of others, pixel by pixel, and counted once: image5 = image0, image6 = image1, image7 = "
        "image2."
    )
    assert copies_in_words(once) == ""


def test_slices_find_copies_in_one_another(twice):
    slices = [measure_slice([twice.images(start, start + 4)], [row_entropy]) for start in (0, 4)]
    found, whole = measure_slices(slices, [row_entropy])["row_entropy"], measure([twice], [row_entropy])["row_entropy"]
    np.testing.assert_array_equal(found.ci, whole.ci)
    assert found.copies == whole.copies


def test_a_grouped_measurement_says_so(twice):
    found = measure([twice], [row_entropy], group="image([0-3])")["row_entropy"]
    assert found.image_ids == ("0", "1", "2", "3", "image4") and found.settings["group"] == "image([0-3])"
    assert found.n_images == 5 and found.n_grouped == 5
    assert "group" not in measure([twice], [row_entropy])["row_entropy"].settings


def augmented(originals=64, copies=8, spread=0.3, cells=400, seed=0):
    """[image, cell]: one value for each original, and a little more for each of its copies; the truth is 0."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(originals, 1, cells)) + spread * rng.normal(size=(originals, copies, cells))
    ids = tuple(f"photo{i}_{k}.png" for i in range(originals) for k in range(copies))
    return values.reshape(-1, cells), ids


def covers(values):
    low, high = interval_of_mean(values, 1000, seed=0)
    return ((low <= 0) & (high >= 0)).mean()


def test_intervals_of_augmented_copies_hold_with_groups_alone():
    values, ids = augmented()
    units = Units.of(ids, [0] * len(ids), STEM)
    grouped = units.collected(collected(values)).per_image
    assert len(grouped) == 64 and covers(grouped) >= 0.92 and covers(values) < 0.65


def of(values, ids, metric="row_entropy"):
    m = measurement(metric, np.zeros((2, 2)))
    return replace(m, per_image=values.reshape(len(ids), -1, 1), image_ids=ids, n_images=len(ids))


def test_augmented_copies_are_told_by_their_values_and_names():
    values, ids = augmented(cells=1)
    told = alike_in_words([of(values, ids)])
    assert f"group='{STEM}'" in told and "512 images, 64 such groups" in told
    share = 1 / (1 + 0.3**2)  # variance between originals over all of it
    assert abs(float(told.split("correlation ")[1].split(";")[0]) - share) < 0.05
    grouped = replace(of(values, ids), settings={**of(values, ids).settings, "group": STEM})
    assert alike_in_words([grouped]) == ""


def test_copies_inside_class_folders_are_told_beyond_what_the_class_shares():
    rng = np.random.default_rng(0)
    of_class, of_photo = rng.normal(size=(4, 1, 1)), 0.5 * rng.normal(size=(4, 12, 1))
    values = (of_class + of_photo + 0.2 * rng.normal(size=(4, 12, 5))).reshape(-1, 1)
    ids = tuple(f"class{c}/photo{i}_{k}.png" for c in range(4) for i in range(12) for k in range(5))
    assert "240 images, 48 such groups" in alike_in_words([of(values, ids)])
    alone = (of_class + 0.5 * rng.normal(size=(4, 60, 1))).reshape(-1, 1)
    assert alike_in_words([of(alone, ids)]) == ""


@pytest.mark.parametrize("names", ["img_{i:04d}.jpg", "cat{c}/cat{c}_{i:04d}.jpg", "digits/{i:04d}", "p{c}_{i}.png"])
def test_numbered_images_that_have_nothing_in_common_are_not_called_copies(names):
    rng = np.random.default_rng(0)
    ids = tuple(names.format(i=i, c=i % 10) for i in range(200))
    for seed in range(5):
        assert alike_in_words([of(np.random.default_rng(seed).normal(size=(200, 1)), ids)]) == ""
    if "/" in names:  # images of one class, each in its folder, may be as alike as they like
        of_class = np.repeat(rng.normal(size=(1, 10)), 20, 0).reshape(-1, 1) + 0.1 * rng.normal(size=(200, 1))
        assert alike_in_words([of(of_class, ids)]) == ""
