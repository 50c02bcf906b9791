"""Maps in an object store are those of a disk, whoever writes them, dies, comes twice or fails to reach it."""

import os
import signal

import pytest
import torch

from attnprobe.core.errors import InputError, MapsFileError, WorkError
from attnprobe.io import remote
from attnprobe.io.ranks import Rank
from attnprobe.io.remote import place
from attnprobe.store import MapWriter, job, open_maps, seal
from tests.object_store import Bucket, proxy, running_server, strict
from tests.store.capturing import CERTIFICATE, capture, plan_for
from tests.store.test_together import in_processes

pytestmark = [
    pytest.mark.usefixtures("small_shards", "merging_here"),
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),  # Python 3.12 on fork beside threads
]


@pytest.fixture(scope="module")
def server():
    with running_server() as address:
        yield address


@pytest.fixture
def bucket(server, monkeypatch):
    return Bucket(server, monkeypatch)


def work(url, maps, die_at=None, at_part=lambda: None):
    """What one process does; with `die_at` it dies at that image."""
    with MapWriter(url, plan_for([maps])) as writer:
        if not writer.begun:
            writer.begin([maps.images(0, 3)])
        for positions in writer.parts():
            at_part()
            for start in range(positions.start, positions.stop, 2):
                if die_at is not None and start >= die_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                writer.append([maps.images(start, min(start + 2, positions.stop))])
        return writer.close(CERTIFICATE)


def check_whole(bucket, maps, name="maps.h5"):
    with open_maps(f"{bucket.url}/{name}") as reader:
        assert reader.complete and reader.image_ids == maps.image_ids
        assert torch.equal(reader.maps().values, maps.values.bfloat16().float())
        assert reader.attrs["certificate"] == CERTIFICATE
        reader.verify()
    assert bucket.names() == [name], "nothing else is left"


def chunks(reader):
    return [(m.stage, m.site, m.image_ids, m.values, m.outcome) for m in reader]


def test_a_file_in_a_bucket_is_to_the_bit_that_of_a_disk(bucket, ten_maps, tmp_path):
    capture(tmp_path / "maps.h5", [ten_maps])
    work(f"{bucket.url}/maps.h5", ten_maps)
    with open_maps(tmp_path / "maps.h5") as here, open_maps(f"{bucket.url}/maps.h5") as there:
        for (*a, values, outcome), (*b, others, others_outcome) in zip(chunks(here), chunks(there), strict=True):
            assert a == b and torch.equal(values, others)
            assert torch.equal(outcome.probability, others_outcome.probability)
    check_whole(bucket, ten_maps)


def test_the_folder_of_shards_in_a_bucket_is_read_as_one(bucket, ten_maps):
    made = capture(f"{bucket.url}/a/maps.h5", [ten_maps], keep_shards=True)
    assert str(made) == f"{bucket.url}/a/maps.parts"
    assert sum(name.endswith(".h5") for name in bucket.names("a")) == 3
    with open_maps(str(made)) as reader:
        assert torch.equal(reader.maps().values, ten_maps.values.bfloat16().float())


@pytest.mark.parametrize(
    "die_at", [pytest.param(0, marks=pytest.mark.slow), 2, pytest.param(6, marks=pytest.mark.slow), 8]
)
def test_what_a_killed_process_left_is_completed(bucket, ten_maps, die_at):
    url = f"{bucket.url}/maps.h5"
    assert in_processes(lambda: work(url, ten_maps, die_at=die_at)) == [signal.SIGKILL]
    assert not place(url).exists()
    assert str(work(url, ten_maps)) == url
    check_whole(bucket, ten_maps)


def test_a_process_killed_at_the_merge_leaves_it_to_the_next(bucket, ten_maps, monkeypatch):
    url = f"{bucket.url}/maps.h5"

    def die(*_, **__):
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(job, "merge", die)
    assert in_processes(lambda: work(url, ten_maps)) == [signal.SIGKILL]
    monkeypatch.undo()
    bucket.reach(bucket.address)
    for name, value in {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    assert "maps.parts/claims/merge.lock" in bucket.names()
    assert str(work(url, ten_maps)) == url
    check_whole(bucket, ten_maps)


@pytest.mark.parametrize("world", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_processes_that_know_nothing_of_each_other_write_one_file(bucket, ten_maps, world):
    url = f"{bucket.url}/maps.h5"
    assert in_processes(*(lambda: work(url, ten_maps) for _ in range(world))) == [0] * world
    if not place(url).exists():  # each left the merge to another
        work(url, ten_maps)
    check_whole(bucket, ten_maps)


def test_work_that_everybody_does_gives_the_same_file(bucket, ten_maps, monkeypatch):
    url = f"{bucket.url}/maps.h5"
    monkeypatch.setattr(
        job, "shared_out", lambda rank, n, claims, is_done: iter([k for k in range(n) if not is_done(k)])
    )
    assert in_processes(*(lambda: work(url, ten_maps) for _ in range(2))) == [0, 0]
    if not place(url).exists():
        work(url, ten_maps)
    check_whole(bucket, ten_maps)


def test_a_slow_process_leaves_nothing_beside_a_file_that_others_finished(bucket, ten_maps, monkeypatch):
    url = f"{bucket.url}/maps.h5"
    finished = []

    def others_finish():
        if not finished:
            finished.append(in_processes(lambda: work(url, ten_maps)))

    work(url, ten_maps, at_part=others_finish)
    assert finished == [[0]]
    check_whole(bucket, ten_maps)


@pytest.mark.parametrize("step", ["merge", "room"])
def test_shards_that_others_removed_with_the_file_made_are_not_missed(bucket, ten_maps, monkeypatch, step):
    url, finished = f"{bucket.url}/maps.h5", []
    owner, name = (job, "merge") if step == "merge" else (job.Job, "_room_for_both")
    undisturbed = getattr(owner, name)

    def others_finish_first(*args, **kwargs):
        if not finished:
            finished.append(None)  # before the fork: the other process is not disturbed
            finished[0] = in_processes(lambda: work(url, ten_maps))
        return undisturbed(*args, **kwargs)

    monkeypatch.setattr(owner, name, others_finish_first)
    assert str(work(url, ten_maps)) == url and finished == [[0]]
    check_whole(bucket, ten_maps)


@pytest.mark.parametrize("fail_every", [10, pytest.param(5, marks=pytest.mark.slow)])
def test_a_server_that_fails_now_and_then_changes_nothing(bucket, ten_maps, fail_every, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.setattr(remote, "OPTIONS", {"s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}}})
    monkeypatch.setattr(remote, "ATTEMPTS", 6)
    with proxy(bucket, fail_every=fail_every) as server:
        work(f"{bucket.url}/maps.h5", ten_maps)
        assert len(server.log) > 20
        with open_maps(f"{bucket.url}/maps.h5") as reader:
            assert torch.equal(reader.maps().values, ten_maps.values.bfloat16().float())
    check_whole(bucket, ten_maps)


def test_a_server_that_always_fails_is_one_line_of_a_failed_work(bucket, ten_maps, monkeypatch):
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    monkeypatch.setattr(remote, "OPTIONS", {"s3": {"config_kwargs": {"retries": {"total_max_attempts": 1}}}})
    with (
        proxy(bucket, status=503) as server,
        pytest.raises(WorkError, match=f"failed {remote.ATTEMPTS} times") as error,
    ):
        work(f"{bucket.url}/maps.h5", ten_maps)
    assert "\n" not in str(error.value) and bucket.url in str(error.value)
    assert len(server.log) <= 3 * remote.ATTEMPTS


def test_wrong_credentials_are_said_at_once(bucket, ten_maps):
    with strict(bucket), pytest.raises(InputError, match="was refused.*credentials") as error:
        work(f"{bucket.url}/maps.h5", ten_maps)
    assert "\n" not in str(error.value) and "AWS_ACCESS_KEY_ID" in str(error.value)


def test_a_missing_bucket_is_said_at_once(bucket, ten_maps):
    with pytest.raises(InputError, match="Make the bucket"):
        work(f"{bucket.url}-not/maps.h5", ten_maps)
    with pytest.raises(MapsFileError, match="no maps at s3://"):
        open_maps(f"{bucket.url}-not/maps.h5")


def test_a_store_that_ignores_conditions_is_refused_before_any_work(bucket, ten_maps):
    with proxy(bucket, forget=("if-none-match",)), pytest.raises(InputError, match="ignores conditional puts"):
        work(f"{bucket.url}/maps.h5", ten_maps)
    assert not [name for name in bucket.names() if "shards" in name]


def test_a_scheme_without_conditional_puts_is_read_only(ten_maps):
    with pytest.raises(InputError, match="hf:// has no way"):
        work("hf://datasets/somebody/maps/maps.h5", ten_maps)


def test_several_processes_do_not_replace_a_file(bucket, ten_maps):
    with pytest.raises(InputError, match="remove it first"):
        MapWriter(f"{bucket.url}/maps.h5", plan_for([ten_maps]), overwrite=True)


def test_another_capture_of_that_name_is_not_touched(bucket, ten_maps):
    work(f"{bucket.url}/maps.h5", ten_maps)
    with pytest.raises(InputError, match="exists"):
        MapWriter(f"{bucket.url}/maps.h5", plan_for([ten_maps], model="another"))
    check_whole(bucket, ten_maps)


def damaged(data, how):
    middle = len(data) // 2
    return data[:-100] if how == "truncated" else data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


@pytest.mark.parametrize("how", ["truncated", "flipped"])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_damaged_object_is_found_when_it_is_opened_or_verified(bucket, ten_maps, how, at_once, monkeypatch):
    url = f"{bucket.url}/maps.h5"
    work(url, ten_maps)
    name = url.removeprefix("s3://")
    bucket.raw.pipe_file(name, damaged(bucket.raw.cat_file(name), how))
    if not at_once:
        monkeypatch.setattr(seal, "HASH_AT_ONCE", 0)
    with pytest.raises(MapsFileError, match="damaged|truncated"):
        open_maps(url).verify()


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_a_damaged_shard_is_captured_again(bucket, ten_maps, how, monkeypatch):
    url, shard = f"{bucket.url}/maps.h5", f"{bucket.url}/maps.parts/shards/s000001.h5".removeprefix("s3://")

    def stop(*_, **__):
        raise WorkError("stopped before the merge")

    with monkeypatch.context() as patch, pytest.raises(WorkError, match="stopped"):
        patch.setattr(job, "merge", stop)
        work(url, ten_maps)
    bucket.raw.pipe_file(shard, damaged(bucket.raw.cat_file(shard), how))
    with pytest.raises(WorkError, match="1 of 3 shards .* in quarantine"):
        work(url, ten_maps)
    work(url, ten_maps)
    with open_maps(url) as reader:
        assert torch.equal(reader.maps().values, ten_maps.values.bfloat16().float())
    assert bucket.names() == ["maps.h5", "maps.parts/quarantine/s000001.h5"]


@pytest.mark.slow
def test_of_a_large_file_only_what_is_asked_for_is_read(bucket, make_maps, monkeypatch):
    maps = make_maps(images=60, layers=6, heads=4, rows=8, cols=8, dtype=torch.float32, spread=3.0)
    work(f"{bucket.url}/maps.h5", maps)
    monkeypatch.setattr(seal, "HASH_AT_ONCE", 0)
    monkeypatch.setattr(remote, "BLOCK", 1 << 16)
    size = place(f"{bucket.url}/maps.h5").size()
    with proxy(bucket) as server, open_maps(f"{bucket.url}/maps.h5") as reader:
        values = reader.maps(images=[7]).values
    assert torch.equal(values, maps.values[7:8].bfloat16().float())
    assert sum(n for method, _, n in server.log if method == "GET") < size / 2


def test_a_file_replaced_while_it_is_read_is_an_error(bucket, ten_maps, monkeypatch):
    url, name = f"{bucket.url}/maps.h5", f"{bucket.url}/maps.h5".removeprefix("s3://")
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    work(url, ten_maps)
    with place(url).open_ranges() as file:
        bucket.raw.pipe_file(name, bytes(len(bucket.raw.cat_file(name))))
        with pytest.raises(InputError, match="replaced while it was read"):
            file.read()


def test_ranks_of_a_job_write_there_too(bucket, ten_maps):
    def as_rank(rank):
        with MapWriter(f"{bucket.url}/maps.h5", plan_for([ten_maps]), Rank(rank, 2, job="a")) as writer:
            if not writer.begun:
                writer.begin([ten_maps.images(0, 3)])
            for positions in writer.parts():
                writer.append([ten_maps.images(positions.start, positions.stop)])
            writer.close(CERTIFICATE)

    assert in_processes(lambda: as_rank(0), lambda: as_rank(1)) == [0, 0]
    if not place(f"{bucket.url}/maps.h5").exists():
        work(f"{bucket.url}/maps.h5", ten_maps)
    check_whole(bucket, ten_maps)
