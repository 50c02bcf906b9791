"""A folder of slices belongs to one capture and one set of metrics with their settings."""

import pytest

from attnprobe.core.errors import InputError
from attnprobe.io.ranks import Rank
from attnprobe.metrics.engine.sink import MeasureSink

FACTS, IDS = {"model": "vit"}, ["a", "b", "c"]


def sink(folder, metrics=None):
    return MeasureSink(folder, Rank.of_this_process(), FACTS, IDS, metrics)


def test_a_folder_is_resumed_with_the_same_metrics_and_refused_with_others_or_other_settings(tmp_path):
    sink(tmp_path).begin([], 2)
    assert sink(tmp_path).batch_images == sink(tmp_path, ["default"]).batch_images == 2
    for others in (["row_entropy"], ["default", "effective_rank"], ["default", "similar_blocks:tau=0.8"]):
        with pytest.raises(InputError, match="begun with another model, images, options or metrics"):
            sink(tmp_path, others)


def test_a_folder_of_an_attnprobe_that_noted_no_settings_is_refused(tmp_path):
    (tmp_path / "plan.json").write_text('{"model": "vit", "metrics": [], "batch_images": 2}')
    with pytest.raises(InputError, match="begun with another"):
        sink(tmp_path)


def folded_sink(folder, keep_values, group=None, ids=tuple("abcdef")):
    return MeasureSink(folder, Rank.of_this_process(), FACTS, ids, None, keep_values, group)


def test_a_folder_of_folded_values_belongs_to_one_bound_and_one_group(tmp_path):
    folded_sink(tmp_path, 4).begin([], 2)
    assert folded_sink(tmp_path, 4).batch_images == 2
    for others in ((5, None), (6, None), (4, "(a)")):
        with pytest.raises(InputError, match="begun with another model, images, options or metrics"):
            folded_sink(tmp_path, *others)


def test_the_bound_says_nothing_of_a_folder_where_every_value_is_kept(tmp_path):
    folded_sink(tmp_path, 6).begin([], 2)
    assert folded_sink(tmp_path, 7, "(a)").batch_images == 2


@pytest.mark.parametrize(("n_images", "n_slices"), [(100, 2), (101, 1), (2_500, 3), (200_000, 196), (600_000, 507)])
def test_slices_of_sums_are_few_since_each_is_as_large_as_all(tmp_path, n_images, n_slices):
    made = folded_sink(tmp_path, 100, ids=[str(i) for i in range(n_images)])
    made.begin([], 16)
    parts = made.pending()
    assert len(parts) == n_slices and {len(part) % 16 for part in parts[:-1]} <= {0}
    assert [i for part in parts for i in (part.start, part.stop)][1:-1:2] == [part.start for part in parts[1:]]
