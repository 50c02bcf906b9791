"""A power cut at any moment of a capture: what was committed is there, and running again completes the file."""

from collections import Counter

import pytest
import torch

from attnprobe.io import fs
from attnprobe.store import open_maps
from tests.power_loss import power_cuts
from tests.store.capturing import capture
from tests.store.test_crash import finish

pytestmark = pytest.mark.usefixtures("small_shards", "merging_here")


@pytest.mark.promise("power-lost")
def test_no_committed_image_is_lost_and_the_next_run_completes_the_file(tmp_path, ten_maps, record_property):
    (tmp_path / "disk").mkdir()
    cuts = power_cuts(tmp_path / "disk", lambda: capture(tmp_path / "disk" / "maps.h5", [ten_maps]))
    reached = Counter()
    for n, cut in enumerate(cuts):
        merged = "maps.h5" in cut.promised
        reached["merged" if merged else len(cut.promised)] += 1
        lost = [name for name in cut.lost if not merged or name == "maps.h5"]  # shards go once they are merged
        assert not lost, f"state {n} lacks {lost}"
        path = cut.lay_out(tmp_path / str(n)) / "maps.h5"
        finish(path, ten_maps)
    assert set(reached) == {0, 1, 2, 3, 4, 5, "merged"}, "plan, three shards, certificate and file were each promised"
    record_property("tried", len(cuts))


@pytest.mark.promise("power-lost")
def test_overwriting_leaves_the_old_file_or_the_new_one(tmp_path, ten_maps, make_maps, record_property):
    old = make_maps(images=2, seed=9)
    (tmp_path / "disk").mkdir()
    path = tmp_path / "disk" / "maps.h5"
    capture(path, [old])
    content = path.read_bytes()
    cuts = power_cuts(path.parent, lambda: capture(path, [ten_maps], overwrite=True))
    for n, cut in enumerate(cuts):
        now = cut.lay_out(tmp_path / str(n)) / "maps.h5"
        if now.read_bytes() == content:
            assert "maps.h5" not in cut.promised, "the new file was promised"
        else:
            with open_maps(now) as reader:
                assert torch.equal(reader.maps().values, ten_maps.values.bfloat16().float())
    record_property("tried", len(cuts))


@pytest.mark.parametrize("operation", ["fsync", "fsync_folder"])
def test_a_sync_that_is_left_out_is_noticed(tmp_path, ten_maps, operation, monkeypatch):
    """The states are hard enough: without one kind of sync something that was promised is lost."""
    monkeypatch.setattr(fs, operation, lambda *arguments: None)
    (tmp_path / "disk").mkdir()
    cuts = power_cuts(tmp_path / "disk", lambda: capture(tmp_path / "disk" / "maps.h5", [ten_maps]))
    assert any("plan.json" in name for cut in cuts for name in cut.lost)
