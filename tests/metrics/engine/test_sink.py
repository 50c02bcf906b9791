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
