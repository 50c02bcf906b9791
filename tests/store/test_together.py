"""Several processes write the file that one writes, whoever comes late, stops or dies."""

import errno
import itertools
import os
import signal
import traceback
from functools import partial

import pytest
import torch

from attnprobe.core.errors import InputError, InUse, MapsFileError, WorkError
from attnprobe.io import fs, ranks
from attnprobe.io.lock import FileLock
from attnprobe.io.ranks import Claims, Rank, shared_out
from attnprobe.store import MapWriter, open_maps, parts
from attnprobe.store import job as job_module
from tests.store.capturing import CERTIFICATE, plan_for

pytestmark = [
    pytest.mark.usefixtures("small_shards", "merging_here"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),  # Python 3.12 on fork beside threads
]


def work(path, maps, rank, world, die_at=None, job="a"):
    """What one process does; with `die_at` it dies at that image."""
    with MapWriter(path, plan_for([maps]), Rank(rank, world, job=job)) as writer:
        if not writer.begun:
            writer.begin([maps.images(0, 3)])
        for positions in writer.parts():
            for start in range(positions.start, positions.stop, 2):
                if die_at is not None and start >= die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                writer.append([maps.images(start, min(start + 2, positions.stop))])
        return writer.close(CERTIFICATE)


def in_processes(*calls, meanwhile=None):
    """Exit statuses of processes that do these at once; `meanwhile` is called for as long as one of them works."""
    children = []
    for call in calls:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                torch.set_num_threads(1)
                call()
                status = 0
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    statuses = dict.fromkeys(children)
    while None in statuses.values():
        if meanwhile is not None:
            meanwhile()
        for child in [child for child, status in statuses.items() if status is None]:
            ended, status = os.waitpid(child, 0 if meanwhile is None else os.WNOHANG)
            statuses[child] = status if ended else None
    return list(statuses.values())


def check_whole(path, maps):
    with open_maps(path) as reader:
        assert reader.complete and reader.image_ids == maps.image_ids
        assert torch.equal(reader.maps().values, maps.values.bfloat16().float())
        assert reader.attrs["certificate"] == CERTIFICATE
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing else is left"


@pytest.mark.promise("capture-stopped")
@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_number_of_processes_writes_the_same_file(tmp_path, ten_maps, world):
    path = tmp_path / "maps.h5"
    assert in_processes(*(lambda r=r: work(path, ten_maps, r, world) for r in range(world))) == [0] * world
    check_whole(path, ten_maps)


def test_a_dead_process_costs_its_shard_and_any_other_number_completes(tmp_path, ten_maps):
    path = tmp_path / "maps.h5"
    dead, alive = in_processes(lambda: work(path, ten_maps, 0, 2, die_at=0), lambda: work(path, ten_maps, 1, 2))
    assert dead == signal.SIGKILL and alive == 0
    assert in_processes(*(lambda r=r: work(path, ten_maps, r, 3, job="b") for r in range(3))) == [0] * 3
    check_whole(path, ten_maps)


COMMIT = ("create", "reserve", "write", "fsync", "link", "unlink", "fsync_folder")
"""Killed before it, or halfway through `write`: nothing, created, half written, written, synced, linked, unlinked."""


@pytest.mark.promise("capture-killed")
@pytest.mark.parametrize("victims", [(0,), (0, 1)], ids=["one", "both"])
@pytest.mark.parametrize("operation", COMMIT)
def test_killed_at_any_point_of_a_commit_by_two_processes(tmp_path, make_maps, operation, victims):
    maps = make_maps(images=20, spread=3.0, dtype=torch.float32, layers=3)
    truth = dict(zip(maps.image_ids, maps.values.bfloat16().float(), strict=True))
    found = []

    def doomed(path, rank, n):
        if rank in victims:
            fs.matched, os.environ["ATTNPROBE_FAULT"] = 0, f"{operation}:{n}:kill"
        work(path, maps, rank, 2)

    def look(path):
        for place in (path, path.with_suffix(".parts")):
            try:
                with open_maps(place, allow_partial=True) as reader:
                    there = reader.maps()
            except (MapsFileError, OSError):  # not there yet, or moving from one place to the other
                continue
            assert all(torch.equal(truth[i], x) for i, x in zip(there.image_ids, there.values, strict=True))
            found.append(there.n_images)

    n = 1
    for again in itertools.count(1):
        path = tmp_path / str(again) / "maps.h5"
        runs = [partial(doomed, path, rank, n) for rank in (0, 1)]
        statuses = in_processes(*runs, meanwhile=partial(look, path))
        assert set(statuses) <= {0, signal.SIGKILL}
        look(path)  # on a busy machine processes may be over before the first look
        resumed = [partial(work, path, maps, rank, 1 + again % 3, job="b") for rank in range(1 + again % 3)]
        assert set(in_processes(*resumed)) == {0}
        check_whole(path, maps)
        n += signal.SIGKILL in statuses  # or the other process was faster, and left too little
        if n == 4:  # the plan, the victim's first shard and its second
            break
    assert found, "some look found maps"


def test_no_shard_is_begun_again_while_the_shards_of_a_finished_file_are_removed(tmp_path, ten_maps, monkeypatch):
    path, begun, discard = tmp_path / "maps.h5", [], parts.discard
    with MapWriter(path, plan_for([ten_maps]), Rank(1, 2, job="a")) as late:
        late.begin([ten_maps.images(0, 3)])

        def halfway(folder):
            for shard in (folder / "shards").glob("*.h5"):
                shard.unlink()
                begun.extend(late.parts())
            discard(folder)

        monkeypatch.setattr(parts, "discard", halfway)
        assert work(path, ten_maps, 0, 2) == path
        assert late.close(CERTIFICATE) == path
    assert begun == []
    check_whole(path, ten_maps)


def test_a_claim_that_comes_while_claims_are_removed_is_removed_with_them(tmp_path, ten_maps, monkeypatch):
    path, unlink = tmp_path / "maps.h5", fs.unlink
    with MapWriter(path, plan_for([ten_maps]), Rank(1, 2, job="a")) as late:
        late.begin([ten_maps.images(0, 3)])

        def unlinked(name):
            unlink(name)
            if name.name == "merge.lock" and not claimed:
                claimed.append(name)
                assert [*late.parts()] == [] and late.close(CERTIFICATE) == path

        claimed = []
        monkeypatch.setattr(fs, "unlink", unlinked)
        assert work(path, ten_maps, 0, 2) == path
    assert claimed
    check_whole(path, ten_maps)


def test_one_after_the_other_the_late_one_finds_all_done(tmp_path, ten_maps):
    path = tmp_path / "maps.h5"
    assert work(path, ten_maps, 0, 2) == path
    before = path.stat().st_ino
    assert work(path, ten_maps, 1, 2) == path and path.stat().st_ino == before
    check_whole(path, ten_maps)


def test_what_a_job_left_that_died_when_the_file_had_its_name_goes_with_the_next(tmp_path, ten_maps, monkeypatch):
    path = tmp_path / "maps.h5"
    monkeypatch.setattr(parts, "discard", lambda _folder: None)
    assert work(path, ten_maps, 0, 2) == path and (tmp_path / "maps.parts" / "plan.json").exists()
    monkeypatch.undo()
    assert in_processes(*(partial(work, path, ten_maps, rank, 2, job="b") for rank in range(2))) == [0, 0]
    check_whole(path, ten_maps)


def test_one_that_comes_while_the_last_one_finishes_finds_all_done(tmp_path, ten_maps, monkeypatch):
    """It saw a plan, and when it has the lock there is the file and no plan any more."""
    path = tmp_path / "maps.h5"
    assert in_processes(partial(work, path, ten_maps, 0, 1, die_at=4)) == [signal.SIGKILL]

    def late(*arguments):
        monkeypatch.setattr(job_module, "FileLock", FileLock)
        assert in_processes(partial(work, path, ten_maps, 0, 1, job="b")) == [0]
        (tmp_path / "maps.parts").mkdir()
        return FileLock(*arguments)

    monkeypatch.setattr(job_module, "FileLock", late)
    with MapWriter(path, plan_for([ten_maps]), Rank(0, 2, job="c")) as late_one:
        assert late_one.begun and [*late_one.parts()] == []
    check_whole(path, ten_maps)


def test_one_that_is_slow_to_begin_finds_all_done(tmp_path, ten_maps):
    path = tmp_path / "maps.h5"
    with MapWriter(path, plan_for([ten_maps]), Rank(0, 2, job="a")) as slow:
        assert not slow.begun and in_processes(partial(work, path, ten_maps, 1, 2)) == [0]
        slow.begin([ten_maps.images(0, 3)])
        assert slow.begun
        assert [*slow.parts()] == [] and slow.close(CERTIFICATE) == path
    check_whole(path, ten_maps)


def test_what_was_begun_again_when_others_had_finished_is_removed(tmp_path, ten_maps, monkeypatch):
    path = tmp_path / "maps.h5"
    with MapWriter(path, plan_for([ten_maps]), Rank(0, 2, job="a")) as slow:
        assert in_processes(partial(work, path, ten_maps, 1, 2)) == [0]
        (tmp_path / "maps.parts").mkdir()
        with monkeypatch.context() as patch:
            patch.setattr(slow._job, "_is_there", lambda: False)  # the file comes right after it looked
            slow.begin([ten_maps.images(0, 3)])
        assert (tmp_path / "maps.parts" / "plan.json").exists()
        for positions in slow.parts():
            slow.append([ten_maps.images(positions.start, positions.stop)])
        assert slow.close(CERTIFICATE) == path
    check_whole(path, ten_maps)


def test_another_file_and_another_job_are_refused(tmp_path, ten_maps, make_maps):
    path = tmp_path / "maps.h5"
    work(path, make_maps(images=3, layers=3), 0, 1)
    with pytest.raises(InputError, match="exists"):
        work(path, ten_maps, 0, 2)
    with pytest.raises(InputError, match="remove it first"):
        MapWriter(path, plan_for([ten_maps]), Rank(0, 2, job="a"), overwrite=True)
    with MapWriter(tmp_path / "x.h5", plan_for([ten_maps]), Rank(0, 2, job="a")) as writer:
        writer.begin([ten_maps.images(0, 3)])
        with pytest.raises(InUse, match="in use by pid"):
            MapWriter(tmp_path / "x.h5", plan_for([ten_maps]), Rank(0, 2, job="b"))
        with MapWriter(tmp_path / "x.h5", plan_for([ten_maps]), Rank(1, 2, job="a")) as other:
            assert other.begun


def test_pieces_are_contiguous_then_what_is_left_and_never_two_at_one(tmp_path):
    done = set()
    ranks = [Rank(r, 3) for r in range(3)]
    workers = [shared_out(r, 9, Claims(tmp_path / "claims"), done.__contains__) for r in ranks]
    assert [next(w) for w in workers] == [0, 3, 6] and [next(w) for w in workers] == [1, 4, 7]
    done |= {0, 1}
    assert [*workers[0]] == [2, 5, 8], "3, 4, 6 and 7 are held by the others"
    assert [*workers[1]] == [*workers[2]] == []


def test_ranks_come_from_the_environment(monkeypatch):
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Rank.of_this_process().alone
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")
    rank = Rank.of_this_process()
    assert (rank.rank, rank.world, rank.alone, rank.in_turn(8)) == (3, 4, False, [6, 7, 0, 1, 2, 3, 4, 5])


def test_a_lock_of_a_job_is_held_by_all_of_it_and_nobody_else(tmp_path):
    first, second = FileLock(tmp_path / "lock", "a"), FileLock(tmp_path / "lock", "a")
    for job in ("b", ""):
        with pytest.raises(InUse):
            FileLock(tmp_path / "lock", job)
    first.release()
    with pytest.raises(InUse):
        FileLock(tmp_path / "lock", "b")
    second.release()
    FileLock(tmp_path / "lock", "b").release()


def test_a_disk_without_room_for_a_claim_is_one_line(tmp_path, ten_maps, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        pytest.raises(WorkError, match="no space left"),
        MapWriter(tmp_path / "maps.h5", plan_for([ten_maps])) as writer,
    ):
        writer.begin([ten_maps.images(0, 3)])
        parts = writer.parts()
        next(parts)
        monkeypatch.setattr(ranks.Claims, "take", full)
        next(parts)
