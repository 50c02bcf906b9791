import itertools
import os
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import torch

from attnprobe.core.errors import InputError, WorkError
from attnprobe.io import fs
from attnprobe.store import MapWriter, merge, open_maps, parts
from attnprobe.store.parts import discard, shard_path
from attnprobe.store.plan import read_plan
from tests.store.capturing import capture, forked, plan_for


@pytest.fixture
def folder(tmp_path, ten_maps, small_shards):
    """All shards of a capture, not merged."""
    return capture(tmp_path / "maps.h5", [ten_maps], keep_shards=True)


def same_maps(path, maps):
    with open_maps(path) as reader:
        return torch.equal(reader.maps().values, maps.values.bfloat16().float()) and reader.complete


def test_chunks_are_copied_as_they_are(folder, ten_maps):
    shards = [h5py.File(shard_path(folder, k)) for k in range(3)]
    apart = [s["stages/trunk/weights"].id.read_direct_chunk((0,) * 5) for s in shards]
    for shard in shards:
        shard.close()
    with h5py.File(capture(folder.with_suffix(".h5"), [ten_maps])) as merged:
        weights = merged["stages/trunk/weights"]
        together = [weights.id.read_direct_chunk((4 * k, 0, 0, 0, 0)) for k in range(3)]
    assert together == apart


@pytest.mark.promise("power-lost")
def test_a_merged_file_is_on_the_disk_before_it_has_its_name(folder, tmp_path, merging_here, monkeypatch):
    done = []
    monkeypatch.setattr(fs, "_strikes", lambda operation: done.append(operation) or "")
    merge.merge(folder, tmp_path / "whole.h5", read_plan(folder)[0], overwrite=False)
    assert done[-5:] == ["write", "fsync", "link", "unlink", "fsync_folder"]


def test_the_merging_process_needs_no_torch():
    code = "import sys, attnprobe.store.merge; print(sorted(m for m in sys.modules if m.split('.')[0] == 'torch'))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_merging_process_dies_with_its_parent(folder, tmp_path):
    """A killed parent closes the pipe to the child's stdin."""
    command = [sys.executable, "-m", "attnprobe.store.merge", str(folder), str(tmp_path / "x")]
    child = subprocess.run(command, stdin=subprocess.DEVNULL, timeout=20)
    assert child.returncode in (0, 1), "it ends by itself, whichever of the two is first"
    code = "import threading, attnprobe.store.merge as m; m._leave_with_parent()"
    assert subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, timeout=20).returncode == 1


def test_a_damaged_shard_stops_the_merge_and_the_next_run_repairs_it(folder, ten_maps):
    writer = MapWriter(folder.with_suffix(".h5"), plan_for([ten_maps]))
    content = bytearray(shard_path(folder, 2).read_bytes())
    content[-20] ^= 1
    shard_path(folder, 2).write_bytes(content)  # after this run checked it
    with pytest.raises(WorkError, match=r"s000002.h5 is damaged.*The shards stay") as caught:
        writer.close()
    assert "\n" not in str(caught.value)
    assert not folder.with_suffix(".h5").exists() and not list(folder.glob(".tmp-*"))
    assert same_maps(capture(folder.with_suffix(".h5"), [ten_maps]), ten_maps)


@pytest.mark.promise("disk-full")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on fork beside threads
@pytest.mark.parametrize("limit", [100, 600, 3000, 9000])
def test_a_full_disk_in_hdf5s_hands_costs_only_the_attempt(folder, ten_maps, limit):
    """RLIMIT_FSIZE refuses writes as a full disk does, wherever in libhdf5 that is."""

    def close():
        writer = MapWriter(folder.with_suffix(".h5"), plan_for([ten_maps]))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        writer.close()

    status, said = forked(close)
    assert status == 1 << 8
    assert said.startswith("WorkError: merging the shards of") and "\n" not in said
    assert sorted(os.listdir(folder)) == ["certificate.json", "plan.json", "run.lock", "shards"]
    assert not folder.with_suffix(".h5").exists()
    assert same_maps(capture(folder.with_suffix(".h5"), [ten_maps]), ten_maps)


def test_a_chunk_that_was_not_written_as_read_is_found(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(merge.zlib, "crc32", lambda data, seen=[]: seen.append(1) or len(seen))
    with pytest.raises(OSError, match="was not written as it was read"):
        merge._copy(folder, tmp_path / "x")


def test_a_file_that_appeared_meanwhile_is_not_replaced(folder, ten_maps, merging_here):
    writer = MapWriter(folder.with_suffix(".h5"), plan_for([ten_maps]))
    folder.with_suffix(".h5").write_text("somebody else's")
    with pytest.raises(InputError, match="exists"):
        writer.close()
    assert folder.with_suffix(".h5").read_text() == "somebody else's"
    assert len(list((folder / "shards").iterdir())) == 3


@pytest.mark.parametrize("removed", [0, 2, 3])
def test_a_run_that_died_after_the_merge_is_finished_by_the_next(folder, ten_maps, removed, merging_here, monkeypatch):
    """The file is committed and some shards are gone already: nothing is captured again."""
    with monkeypatch.context() as interrupted:
        interrupted.setattr(parts, "discard", lambda folder: None)
        MapWriter(folder.with_suffix(".h5"), plan_for([ten_maps])).close()
    for number in range(removed):
        shard_path(folder, number).unlink()
    again = MapWriter(folder.with_suffix(".h5"), plan_for([ten_maps]))
    assert again.pending() == []
    with pytest.raises(InputError, match="is complete"):
        again.append([ten_maps.images(0, 4)])
    assert again.close() == folder.with_suffix(".h5")
    assert same_maps(folder.with_suffix(".h5"), ten_maps) and not folder.exists()


def test_discarding_leaves_what_is_not_ours(folder):
    (folder / "shards" / "notes.txt").write_text("mine")
    discard(folder)
    assert sorted(p.name for p in folder.rglob("*")) == ["notes.txt", "run.lock", "shards"]


@pytest.mark.promise("capture-killed")
def test_parts_that_another_process_of_the_job_removes_at_the_same_time_are_gone_without_an_error(
    folder, tmp_path, monkeypatch, record_property
):
    """Both found the file of a job that was killed when it had its name; the other is faster, wherever this one is."""
    for n in itertools.count():
        copy, done = Path(shutil.copytree(folder, tmp_path / f"copy{n}")), []

        def strikes(operation, copy=copy, done=done, n=n):
            if len(done) == n:
                shutil.rmtree(copy)
            done.append(operation)
            return ""

        with monkeypatch.context() as patched:
            patched.setattr(fs, "_strikes", strikes)
            discard(copy)
        if len(done) <= n:
            break
        assert not copy.exists()
    assert n > 5
    record_property("tried", n)
