"""Captures that are killed or run out of disk many times: running the command again gives the undisturbed file."""

import itertools
import os
import random
import signal
import subprocess
import time

import pytest
import torch

from attnprobe.capturing import capture
from attnprobe.io.ranks import Rank
from attnprobe.metrics import measure
from attnprobe.models import build_model
from attnprobe.store import CapturePlan, MapWriter, merge, open_maps
from attnprobe.workflows import capture as capture_module
from attnprobe.workflows.task import Task
from tests.store.capturing import forked, shrink_shards

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),  # Python 3.12 on fork beside threads
]
IMAGES = 96
ALONE = Rank()


@pytest.fixture
def task(monkeypatch):
    """A capture of a DeepViT in twelve shards of eight images, in batches of four."""
    shrink_shards(monkeypatch)
    model = build_model(
        "deepvit_16_digits", seed=0, img_size=16, patch_size=8, embed_dim=12, num_heads=3, depth=2, num_classes=4
    )
    pixels = torch.randn(IMAGES, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    capturing = capture(model, pixels, ("weights", "effective"), tokens=True, values=True, batch_size=4)
    assert capturing.certificate.output_equal
    plan = CapturePlan(image_ids=tuple(str(i) for i in range(IMAGES)), model="deepvit", config={}, settings={})
    return Task("deepvit", model, torch.device("cpu"), capturing.images, plan, lambda _model: capturing)


def contents(path, allow_partial=False):
    """Per image id everything a file has of it, and what it measures to."""
    with open_maps(path, allow_partial=allow_partial, chunk_images=1) as reader:
        images = {}
        for maps in reader:
            told = (maps.outcome.prediction, maps.outcome.probability)
            images.setdefault(maps.image_ids[0], []).extend((maps.values, maps.tokens, maps.value_vectors, *told))
        measured = measure(reader, ["head_confidence", "similar_blocks", "head_output_norm"], bootstrap=0)
        return images, {name: torch.from_numpy(m.mean) for name, m in measured.items()}, reader.complete


def check_part(folder, undisturbed):
    """What a reader finds meanwhile is right, as far as it goes; how many images those are."""
    if not list(folder.glob("shards/s*.h5")):
        return 0
    images, _, _ = contents(folder, allow_partial=True)
    for name, tensors in images.items():
        assert all(map(torch.equal, tensors, undisturbed[0][name]))
    return len(images)


def check_whole(path, undisturbed):
    images, measured, complete = contents(path)
    assert complete and list(images) == list(undisturbed[0])
    for name, tensors in images.items():
        assert all(map(torch.equal, tensors, undisturbed[0][name])), name
    assert measured.keys() == undisturbed[1].keys()
    assert all(torch.equal(measured[name], undisturbed[1][name]) for name in measured)
    left = [p.name for p in path.parent.rglob("*") if p.is_file() and p != path]
    assert left in ([], ["run.lock"]), "of a process killed when all but this was done a lock may be left"


def started(task, path, rank):
    """A process that captures; its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        torch.set_num_threads(1)
        stored(task, path, rank)
        status = 0
    finally:
        os._exit(status)


def stored(task, path, rank):
    with MapWriter(path, task.plan, rank) as sink:
        capture_module.fill(sink, task, "capture")
        return sink.close(task.capturing.certificate.to_dict())


def ended(child):
    return os.waitpid(child, 0)[1]


def undisturbed_run(task, path):
    """What the file then holds, and how long the run took."""
    begun = time.monotonic()
    assert ended(started(task, path, ALONE)) == 0
    seconds = time.monotonic() - begun
    return contents(path), seconds


@pytest.mark.promise("capture-killed")
@pytest.mark.parametrize(("world", "kills"), [(1, 50), (2, 20)])
def test_kills_at_random_moments_change_nothing(tmp_path, task, monkeypatch, world, kills, record_property):
    monkeypatch.setattr(merge, "_run_child", merge._copy)  # so that a kill can fall into the merge, too
    undisturbed, seconds = undisturbed_run(task, tmp_path / "whole" / "maps.h5")
    chance = random.Random(world)
    found = []
    for n in itertools.count():
        path = tmp_path / str(n) / "maps.h5"
        children = [started(task, path, Rank(r, world, r, world, "first")) for r in range(world)]
        time.sleep(chance.uniform(0, seconds))
        victims = children if n % 2 else children[:1]  # of two processes sometimes one, and the other goes on
        for child in victims:
            os.kill(child, signal.SIGKILL)
        statuses = [ended(child) for child in children]
        assert set(statuses) <= {0, signal.SIGKILL}
        if signal.SIGKILL in statuses:
            found.append(IMAGES if path.exists() else check_part(path.with_suffix(".parts"), undisturbed))
        if not path.exists() or (path.with_suffix(".parts") / "plan.json").exists():
            again = 1 + n % 3 if world > 1 else 1
            resumed = [started(task, path, Rank(r, again, r, again, "again")) for r in range(again)]
            assert [ended(child) for child in resumed] == [0] * again
        check_whole(path, undisturbed)
        if len(found) == kills:
            break
    print(f"{kills} kills with {world} processes in runs of {seconds:.2f} s; images there: {sorted(found)}")
    assert len(set(found)) >= 4, "kills fell into the beginning, the middle and the end"
    record_property("tried", kills)


@pytest.fixture
def small_disk(tmp_path):
    """`small_disk(kilobytes)` is an empty folder with that much room, or the same folder with more."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options):
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True, check=False
        )
        if done.returncode:
            pytest.skip("mounting a file system of a given size needs root")

    def sized(kilobytes, more=False):
        if not more:
            unmount()
        mount(f"{'remount,' if more else ''}size={kilobytes}k")
        return folder

    def unmount():
        if os.path.ismount(folder):
            subprocess.run(["umount", str(folder)], check=True)

    yield sized
    unmount()


@pytest.mark.promise("disk-full")
def test_a_full_disk_of_any_size_is_one_line_and_costs_only_the_attempt(tmp_path, task, small_disk, record_property):
    undisturbed, _ = undisturbed_run(task, tmp_path / "whole" / "maps.h5")
    whole = (tmp_path / "whole" / "maps.h5").stat().st_size // 1024
    ways = []
    sizes = [round(8 * 1.4**step) for step in range(20)]
    for size in sizes:
        disk = small_disk(size)
        path = disk / "run" / "maps.h5"
        status, said = forked(lambda path=path: stored(task, path, ALONE))
        parts = path.with_suffix(".parts")
        assert "\n" not in said
        if status:
            assert status == 1 << 8 and said.startswith("WorkError: ") and not path.exists()
            ways.append(f"{check_part(parts, undisturbed)} images")
        else:
            ways.append("file" if path.exists() else "shards kept")
            if not path.exists():
                assert check_part(parts, undisturbed) == IMAGES
        small_disk(64 * whole, more=True)
        if not path.exists():
            assert forked(lambda path=path: stored(task, path, ALONE))[0] == 0
        check_whole(path, undisturbed)
    print(f"disks of {sizes[0]} to {sizes[-1]} kB for a file of {whole} kB: {ways}")
    assert "file" in ways and "0 images" in ways and len(set(ways)) > 3
    record_property("tried", len(sizes))
