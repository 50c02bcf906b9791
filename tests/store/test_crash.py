"""Whatever operation fails or kills: every committed shard is whole, and running again completes the file."""

import itertools
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch

from attnprobe.core.errors import InputError, WorkError
from attnprobe.io import fs
from attnprobe.store import open_maps, seal
from attnprobe.store.parts import shard_path
from tests.store.capturing import capture, forked, shrink_shards

pytestmark = [
    pytest.mark.usefixtures("small_shards", "merging_here"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),  # Python 3.12 on fork beside threads
]


def committed(folder):
    """Content of every shard that has its name; each must be whole."""
    found = {}
    for path in sorted((folder / "shards").glob("s*.h5")) if folder.exists() else []:
        seal.verify(path)
        found[path.name] = (path.stat().st_ino, path.read_bytes())
    return found


def finish(path, maps):
    """Run the same command again; the result must hold every image once, bit for bit, and leave nothing else."""
    before = committed(path.with_suffix(".parts"))
    try:
        capture(path, [maps])
    except InputError as error:  # it was complete already, all but its empty folder
        assert "exists" in str(error) and not before
    with open_maps(path) as reader:
        assert reader.complete and reader.image_ids == maps.image_ids
        assert torch.equal(reader.maps().values, maps.values.bfloat16().float())
        assert torch.equal(reader.prediction, maps.outcome.prediction)
    assert not list(path.parent.rglob(".tmp-*")) and not list(path.parent.rglob("*.h5"))[1:]


@pytest.mark.promise("capture-killed")
def test_killed_before_any_operation_at_all(tmp_path, ten_maps, fault, record_property):
    where = Counter()
    for n in itertools.count(1):
        path = tmp_path / str(n) / "maps.h5"
        fault(f"any:{n}:kill")
        status, said = forked(lambda path=path: capture(path, [ten_maps]))
        fault("")
        folder = path.with_suffix(".parts")
        if status == 0:
            break
        assert status == signal.SIGKILL and said == ""
        before = committed(folder)
        where["merged" if path.exists() else len(before)] += 1
        finish(path, ten_maps)
    assert n > 45 and set(where) == {0, 1, 2, 3, "merged"}
    assert min(where.values()) >= 7, "kills fell into every operation of every shard's commit"
    record_property("tried", sum(where.values()))


@pytest.mark.promise("capture-killed")
def test_a_resumed_capture_does_not_touch_what_is_committed(tmp_path, ten_maps, fault, record_property):
    for n in (10, 17, 24, 28):
        path = tmp_path / str(n) / "maps.h5"
        fault(f"any:{n}:kill")
        assert forked(lambda path=path: capture(path, [ten_maps], keep_shards=True))[0] == signal.SIGKILL
        fault("")
        before = committed(path.with_suffix(".parts"))
        capture(path, [ten_maps], keep_shards=True)
        assert not list(path.parent.rglob(".tmp-*")), "what a killed process left half-written goes"
        after = committed(path.with_suffix(".parts"))
        assert len(after) == 3 and before.items() <= after.items()
    record_property("tried", 4)


@pytest.mark.promise("io-faults")
@pytest.mark.parametrize("kind", ["ENOSPC", "EIO"])
def test_any_operation_failing_is_one_line_and_running_again_completes(
    tmp_path, ten_maps, fault, kind, record_property
):
    failures = 0
    for n in itertools.count(1):
        path = tmp_path / str(n) / "maps.h5"
        fault(f"any:{n}:{kind}")
        try:
            capture(path, [ten_maps])
        except WorkError as error:
            failures += 1
            assert "\n" not in str(error) and error.exit_code == 1
            assert ("no space left on the disk" if kind == "ENOSPC" else "Input/output error") in str(error)
            assert not list(path.parent.rglob(".tmp-*"))
        struck = fs.matched >= n
        fault("")
        if not struck:
            break
        if not path.exists() or path.with_suffix(".parts").exists():
            finish(path, ten_maps)
    assert failures > 40
    record_property("tried", failures)


@pytest.mark.promise("io-faults")
@pytest.mark.parametrize("kind", ["short", "EINTR"])
def test_short_writes_and_interrupted_calls_go_unnoticed(tmp_path, ten_maps, fault, kind, record_property):
    for n in itertools.count(1):
        path = tmp_path / str(n) / "maps.h5"
        fault(f"{'write' if kind == 'short' else 'any'}:{n}:{kind}")
        assert capture(path, [ten_maps]) == path
        struck = fs.matched >= n
        fault("")
        with open_maps(path) as reader:
            assert torch.equal(reader.maps().values, ten_maps.values.bfloat16().float())
        if not struck:
            break
    assert n > 5
    record_property("tried", n - 1)


@pytest.mark.promise("capture-killed")
def test_overwriting_keeps_the_old_file_until_the_new_one_has_its_name(
    tmp_path, ten_maps, make_maps, fault, record_property
):
    old = make_maps(images=2, seed=9)
    for n in itertools.count(1):
        path = tmp_path / str(n) / "maps.h5"
        capture(path, [old])
        content = path.read_bytes()
        fault(f"any:{n}:kill")
        status, _ = forked(lambda path=path: capture(path, [ten_maps], overwrite=True))
        fault("")
        if path.read_bytes() != content:
            with open_maps(path) as reader:
                assert reader.image_ids == ten_maps.image_ids
        if status == 0:
            break
        capture(path, [ten_maps], overwrite=True)
        with open_maps(path) as reader:
            assert torch.equal(reader.maps().values, ten_maps.values.bfloat16().float())
        assert os.listdir(path.parent) == ["maps.h5"]
    assert n > 40
    record_property("tried", n - 1)


@pytest.mark.promise("capture-killed")
def test_a_shard_that_rots_between_two_runs_is_captured_again(tmp_path, ten_maps, fault):
    path = tmp_path / "maps.h5"
    fault("any:24:kill")
    assert forked(lambda: capture(path, [ten_maps]))[0] == signal.SIGKILL
    fault("")
    shard = shard_path(path.with_suffix(".parts"), 0)
    content = shard.read_bytes()
    shard.write_bytes(content[: len(content) // 2])
    capture(path, [ten_maps])
    with open_maps(path) as reader:
        assert torch.equal(reader.maps().values, ten_maps.values.bfloat16().float())
    assert (path.with_suffix(".parts") / "quarantine" / "s000000.h5").stat().st_size == len(content) // 2


LONG_CAPTURE = """
import sys, torch
from pathlib import Path
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.store import layout
from tests.store.capturing import capture
from tests.store.test_crash import long_maps
layout.SHARD_BYTES = 1
torch.set_num_threads(1)
maps = long_maps()
print("began", flush=True)
capture(Path(sys.argv[1]), [maps], batch=5)
"""


def long_maps():
    """200 images, one shard each."""
    from attnprobe.core.maps import AttentionMaps, Outcome, TokenGrid

    values = (3 * torch.randn(200, 4, 6, 65, 65, generator=torch.Generator().manual_seed(0))).softmax(-1)
    outcome = Outcome(torch.zeros(200).long(), torch.arange(200) % 7, torch.rand(200))
    return AttentionMaps(values, tuple(f"image{i}" for i in range(200)), TokenGrid(8, 8), outcome=outcome)


@pytest.mark.promise("capture-killed")
@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path, monkeypatch, record_property):
    """Real processes, killed wherever they are; each resume keeps all that was committed before."""
    path = tmp_path / "maps.h5"
    chance = random.Random(0)
    known, progress = {}, []
    for _ in range(20):
        process = subprocess.Popen([sys.executable, "-c", LONG_CAPTURE, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "began\n"
        time.sleep(chance.uniform(0.0, 0.25))
        process.kill()
        process.communicate()
        now = committed(path.with_suffix(".parts"))
        assert known.items() <= now.items(), "what was acknowledged is lost or was written again"
        known = now
        progress.append(len(known))
    monkeypatch.setattr("attnprobe.store.layout.SEVERAL_MAPS", 256 << 10)
    shrink_shards(monkeypatch, 256 << 10)
    print("shards after each kill:", progress)
    finish(path, long_maps())
    assert progress[0] < 200
    record_property("tried", len(progress))
