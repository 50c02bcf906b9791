import os
import threading
import weakref

import pytest
import torch

from attnprobe.core.errors import InputError, InUse, MapsFileError, ShapeError, WorkError
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.io import fs
from attnprobe.io.lock import FileLock
from attnprobe.store import MapWriter, job, open_maps
from attnprobe.store.parts import shard_path
from attnprobe.store.shard import Shard
from tests.store.capturing import CERTIFICATE, capture, plan_for

pytestmark = pytest.mark.usefixtures("merging_here")


def stored(path, **options):
    with open_maps(path, **options) as reader:
        return {(m.stage, m.site): reader.maps(m.stage, m.site) for m in reader}


@pytest.mark.parametrize(("dtype", "exact"), [("bfloat16", False), ("float16", False), ("float32", True)])
@pytest.mark.parametrize("batch", [1, 3, 10])
def test_what_comes_back_is_torchs_own_rounding_bit_for_bit(tmp_path, ten_maps, dtype, exact, batch, small_shards):
    path = capture(tmp_path / "maps.h5", [ten_maps], dtype=dtype, batch=batch)
    values = stored(path)["trunk", "weights"].values
    assert values.dtype == torch.float32
    assert torch.equal(values, ten_maps.values.to(getattr(torch, dtype)).float())
    assert torch.equal(values, ten_maps.values) == exact


def test_nan_infinity_zero_and_tiny_weights_survive(tmp_path, make_maps):
    maps = make_maps(images=1, layers=1, dtype=torch.float32)
    odd = torch.tensor([float("nan"), float("inf"), -float("inf"), -0.0, 1e-30, 1e-40, 1.0])
    maps.values[0, 0, 0, 0] = odd
    values = stored(capture(tmp_path / "maps.h5", [maps]))["trunk", "weights"].values[0, 0, 0, 0]
    expected = odd.bfloat16().float()
    assert torch.equal(values.view(torch.int32)[1:], expected.view(torch.int32)[1:]) and values[0].isnan()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_maps_of_any_float_type_are_stored(tmp_path, make_maps, dtype):
    maps = make_maps(dtype=dtype)
    values = stored(capture(tmp_path / "maps.h5", [maps]))["trunk", "weights"].values
    assert torch.equal(values, maps.values.to(torch.bfloat16).float())


@pytest.mark.parametrize("batch", [1, 4, 7])
def test_two_sites_tokens_and_stages_come_back_as_they_were(tmp_path, make_maps, small_shards, batch):
    tokens = torch.randn(9, 3, 7, 5)
    parts = {"images": 9, "dtype": torch.float32, "rows": 2, "cols": 3, "layers": 3}
    named = {"layers": ("blocks.0", "blocks.1", "blocks.2"), "tokens": tokens}
    weights, effective = (make_maps(seed=s, **parts) for s in (1, 2))
    weights = AttentionMaps(weights.values, weights.image_ids, weights.grid, is_effective=False, **named)
    effective = AttentionMaps(
        effective.values - 0.1, weights.image_ids, weights.grid, site="effective", stochastic=False, **named
    )
    cross = AttentionMaps(
        torch.rand(9, 2, 4, 1, 6), weights.image_ids, TokenGrid(2, 3, prefix=()), stage="class", kind="class"
    )
    path = capture(tmp_path / "maps.h5", [weights, effective, cross], batch=batch)
    with open_maps(path, chunk_images=100) as reader:
        assert reader.stages == ("trunk", "class") and reader.sites("trunk") == ("weights", "effective")
        came = list(reader)
    assert [(m.stage, m.site) for m in came] == [("trunk", "weights"), ("trunk", "effective"), ("class", "weights")]
    for before, after in zip([weights, effective, cross], came, strict=True):
        assert torch.equal(after.values, before.values.bfloat16().float())
        for name in ("image_ids", "grid", "site", "is_effective", "stochastic", "layers", "stage", "kind"):
            assert getattr(after, name) == getattr(before, name), name
    assert torch.equal(came[0].tokens, tokens.bfloat16().float()) and came[1].tokens is came[0].tokens
    assert came[2].tokens is None


@pytest.mark.gpu
def test_maps_on_the_gpu_are_stored_as_those_on_the_cpu(tmp_path, ten_maps, small_shards, gpu):
    tokens = torch.rand(10, 3, 7, 4)
    there = AttentionMaps(ten_maps.values.to(gpu), ten_maps.image_ids, ten_maps.grid, tokens=tokens.to(gpu))
    came = stored(capture(tmp_path / "maps.h5", [there]))["trunk", "weights"]
    assert torch.equal(came.values, ten_maps.values.bfloat16().float())
    assert torch.equal(came.tokens, tokens.bfloat16().float())


@pytest.mark.parametrize(
    "shape", [(3, 1, 1, 2, 2), (2, 2, 3, 90, 91), (1, 2, 5, 700, 700), (1, 1, 1, 1500, 1600), (300, 3, 1, 4, 4)]
)
def test_chunks_of_every_kind_are_filled_rightly(tmp_path, shape):
    """Several images a chunk, one layer a chunk, heads split, queries split."""
    values = torch.rand(shape).bfloat16()
    ids = tuple(map(str, range(shape[0])))
    maps = AttentionMaps(values, ids, TokenGrid(1, 1), kind="cross")
    assert torch.equal(
        stored(capture(tmp_path / "maps.h5", [maps], batch=7))["trunk", "weights"].values, values.float()
    )


def test_outcomes_labels_and_the_capture_itself_are_kept(tmp_path, ten_maps, small_shards):
    plan = plan_for([ten_maps], variant="deepvit", data="digits/val", seed=3, versions={"torch": "2"}, device="cpu")
    with open_maps(capture(tmp_path / "maps.h5", [ten_maps], plan=plan)) as reader:
        outcome = ten_maps.outcome
        assert torch.equal(reader.labels, outcome.labels) and torch.equal(reader.prediction, outcome.prediction)
        assert torch.equal(reader.probability, outcome.probability)
        attrs = reader.attrs
    assert attrs["certificate"] == CERTIFICATE and attrs["complete"] and attrs["n_images"] == 10
    assert attrs["config"] == {"depth": 3, "heads": 2} and attrs["settings"] == {"what": ["weights"]}
    for name in ("model", "variant", "data", "seed", "versions", "device"):
        assert attrs[name] == getattr(plan, name)


def test_labels_of_the_plan_are_used_and_unknown_outcomes_say_so(tmp_path, make_maps):
    maps = make_maps(images=3)
    with open_maps(capture(tmp_path / "a.h5", [maps], plan=plan_for([maps], labels=(2, 0, 1)))) as reader:
        assert reader.labels.tolist() == [2, 0, 1] and reader.prediction.tolist() == [-1] * 3
        assert reader.probability.isnan().all()
    with open_maps(capture(tmp_path / "b.h5", [maps])) as reader:
        assert reader.labels.tolist() == [-1] * 3


def test_only_the_file_is_left(tmp_path, ten_maps, small_shards):
    assert capture(tmp_path / "new" / "maps.h5", [ten_maps]) == tmp_path / "new" / "maps.h5"
    assert os.listdir(tmp_path / "new") == ["maps.h5"]


def test_kept_shards_read_like_the_file_and_merge_later(tmp_path, ten_maps, small_shards):
    folder = capture(tmp_path / "maps.h5", [ten_maps], keep_shards=True)
    assert folder == tmp_path / "maps.parts" and len(list((folder / "shards").iterdir())) == 3
    from_folder = stored(folder)["trunk", "weights"]
    assert capture(tmp_path / "maps.h5", [ten_maps], keep_shards=True) == folder
    from_file = stored(capture(tmp_path / "maps.h5", [ten_maps]))["trunk", "weights"]
    assert torch.equal(from_folder.values, from_file.values) and from_folder.image_ids == from_file.image_ids
    assert os.listdir(tmp_path) == ["maps.h5"]


def test_shards_are_kept_where_the_disk_cannot_hold_both(tmp_path, ten_maps, small_shards, monkeypatch):
    monkeypatch.setattr(job.Job, "_room_for_both", lambda self, pinned: False)
    folder = capture(tmp_path / "maps.h5", [ten_maps])
    assert folder == tmp_path / "maps.parts" and stored(folder)["trunk", "weights"].n_images == 10


def test_pending_shrinks_shard_by_shard_and_an_exception_keeps_the_finished_ones(tmp_path, ten_maps, small_shards):
    path = tmp_path / "maps.h5"
    with pytest.raises(KeyError), MapWriter(path, plan_for([ten_maps])) as maps_writer:
        assert maps_writer.pending() == [range(10)]
        maps_writer.append([ten_maps.images(0, 6)])
        assert maps_writer.pending() == [range(6, 8), range(8, 10)]
        raise KeyError
    with MapWriter(path, plan_for([ten_maps])) as again:
        assert again.pending() == [range(4, 8), range(8, 10)]
        again.append([ten_maps.images(8, 10)])
        again.append([ten_maps.images(4, 8)])
        assert again.pending() == []
    assert torch.equal(stored(path)["trunk", "weights"].values, ten_maps.values.bfloat16().float())


def test_an_exception_before_the_first_batch_leaves_nothing(tmp_path, ten_maps):
    with pytest.raises(KeyError), MapWriter(tmp_path / "maps.h5", plan_for([ten_maps])):
        raise KeyError
    assert os.listdir(tmp_path) == []


def test_closing_before_all_images_came_is_an_error_that_keeps_the_shards(tmp_path, ten_maps, small_shards):
    unfinished = pytest.raises(WorkError, match="6 of 10 images were not captured")
    with unfinished, MapWriter(tmp_path / "maps.h5", plan_for([ten_maps])) as maps_writer:
        maps_writer.append([ten_maps.images(0, 5)])
    assert shard_path(tmp_path / "maps.parts", 0).exists()
    assert capture(tmp_path / "maps.h5", [ten_maps]) == tmp_path / "maps.h5"


def test_an_existing_file_needs_overwrite_and_stays_until_the_new_one_is_complete(tmp_path, ten_maps, make_maps):
    path = capture(tmp_path / "maps.h5", [ten_maps])
    before = path.read_bytes()
    with pytest.raises(InputError, match="exists. Choose another output, or replace it with overwrite=True"):
        MapWriter(path, plan_for([ten_maps]))
    assert os.listdir(tmp_path) == ["maps.h5"]
    other = make_maps(images=4, seed=5)
    with pytest.raises(KeyError), MapWriter(path, plan_for([other]), overwrite=True) as maps_writer:
        maps_writer.append([other.images(0, 4)])
        raise KeyError
    assert path.read_bytes() == before
    capture(path, [other], overwrite=True)
    assert torch.equal(stored(path)["trunk", "weights"].values, other.values.bfloat16().float())
    assert os.listdir(tmp_path) == ["maps.h5"]


def test_an_unfinished_capture_by_another_plan_is_thrown_away_only_when_asked(tmp_path, ten_maps, small_shards):
    path, other = tmp_path / "maps.h5", plan_for([ten_maps], model="deepvit")
    with pytest.raises(KeyError), MapWriter(path, plan_for([ten_maps])) as maps_writer:
        maps_writer.append([ten_maps.images(0, 8)])
        raise KeyError
    with pytest.raises(InputError, match="another model"):
        MapWriter(path, other)
    assert shard_path(tmp_path / "maps.parts", 1).exists()
    with MapWriter(path, plan_for([ten_maps]), overwrite=True) as same:
        assert same.pending() == [range(8, 10)], "the same plan is continued, with or without overwrite=True"
        with pytest.raises(InUse, match=f"in use by pid {os.getpid()} on "):
            MapWriter(path, other, overwrite=True)
        same.append([ten_maps.images(8, 10)])
    capture(tmp_path / "b.h5", [ten_maps], keep_shards=True)
    path = capture(tmp_path / "b.h5", [ten_maps], plan=other, overwrite=True)
    with open_maps(path) as reader:
        assert reader.attrs["model"] == "deepvit"


def test_a_capture_that_was_refused_at_its_first_image_stands_in_no_others_way(tmp_path, ten_maps, small_shards):
    path, other = tmp_path / "maps.h5", plan_for([ten_maps], model="deepvit")
    with pytest.raises(KeyError), MapWriter(path, plan_for([ten_maps])) as maps_writer:
        maps_writer.begin([ten_maps.images(0, 4)])
        raise KeyError
    assert (tmp_path / "maps.parts" / "plan.json").exists()
    with open_maps(capture(path, [ten_maps], plan=other)) as reader:
        assert reader.attrs["model"] == "deepvit"


def test_a_second_process_is_turned_away_and_harms_nothing(tmp_path, ten_maps, small_shards):
    with MapWriter(tmp_path / "maps.h5", plan_for([ten_maps])) as first:
        first.append([ten_maps.images(0, 4)])
        with pytest.raises(InUse) as caught:
            MapWriter(tmp_path / "maps.h5", plan_for([ten_maps]))
        assert caught.value.exit_code == 75
        first.append([ten_maps.images(4, 10)])
    assert stored(tmp_path / "maps.h5")["trunk", "weights"].n_images == 10


def test_too_little_space_is_an_error_before_any_work(tmp_path, ten_maps, small_shards, monkeypatch):
    usage = fs.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fs.shutil, "disk_usage", lambda path: usage._replace(free=3000))
    with pytest.raises(WorkError, match=r"needs about 0 MB for 10 images and the disk has 0 MB") as caught:
        capture(tmp_path / "maps.h5", [ten_maps])
    assert caught.value.exit_code == 1 and os.listdir(tmp_path) == []


def test_room_is_asked_for_the_missing_images_only(tmp_path, ten_maps, small_shards, monkeypatch):
    with pytest.raises(KeyError), MapWriter(tmp_path / "maps.h5", plan_for([ten_maps])) as maps_writer:
        maps_writer.append([ten_maps.images(0, 8)])
        raise KeyError
    usage = fs.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(fs.shutil, "disk_usage", lambda path: usage._replace(free=3000))
    assert capture(tmp_path / "maps.h5", [ten_maps]) == tmp_path / "maps.parts", "room for two images, not for a copy"


def test_a_disk_that_fills_up_is_one_line_and_keeps_what_is_finished(tmp_path, ten_maps, small_shards, fault):
    fault("reserve:3:ENOSPC")  # the plan, shard 0, shard 1
    with pytest.raises(WorkError, match=r"no space left .*s000001.h5 \(1 of 3 are done and stay\)") as caught:
        capture(tmp_path / "maps.h5", [ten_maps])
    assert "\n" not in str(caught.value)
    shards = tmp_path / "maps.parts" / "shards"
    assert os.listdir(shards) == ["s000000.h5"]
    fault("")
    with MapWriter(tmp_path / "maps.h5", plan_for([ten_maps])) as again:
        assert again.pending() == [range(4, 8), range(8, 10)]
        again.append([ten_maps.images(4, 10)])


def test_a_failed_writer_goes_on_failing(tmp_path, ten_maps, small_shards, fault):
    fault("fsync:2:EIO")
    maps_writer = MapWriter(tmp_path / "maps.h5", plan_for([ten_maps]))
    maps_writer.append([ten_maps.images(0, 4)])
    for call in (lambda: maps_writer.append([ten_maps.images(4, 8)]), maps_writer.pending, maps_writer.close):
        with pytest.raises(WorkError, match="failed: Input/output error"):
            call()


def test_another_process_that_was_first_without_locks_is_believed_if_its_shard_is_whole(
    tmp_path, ten_maps, small_shards, monkeypatch
):
    monkeypatch.setattr(FileLock, "_acquire", lambda self: None)
    first = MapWriter(tmp_path / "maps.h5", plan_for([ten_maps]))
    first.append([ten_maps.images(0, 4)])
    first.pending()
    shard = shard_path(tmp_path / "maps.parts", 1)
    second = MapWriter(tmp_path / "maps.h5", plan_for([ten_maps]))
    second.append([ten_maps.images(4, 8)])
    second.pending()
    theirs = shard.stat()
    first.append([ten_maps.images(4, 10)])
    assert first.close() == tmp_path / "maps.h5" and theirs.st_nlink == 1
    assert torch.equal(stored(tmp_path / "maps.h5")["trunk", "weights"].values, ten_maps.values.bfloat16().float())
    second._release()


def test_another_process_that_was_first_without_locks_is_not_believed_if_its_shard_is_damaged(
    tmp_path, ten_maps, small_shards, monkeypatch
):
    monkeypatch.setattr(FileLock, "_acquire", lambda self: None)
    writer = MapWriter(tmp_path / "maps.h5", plan_for([ten_maps]))
    writer.append([ten_maps.images(0, 4)])
    writer.pending()
    shard_path(tmp_path / "maps.parts", 1).write_bytes(b"half a shard")
    writer.append([ten_maps.images(4, 8)])
    with pytest.raises(MapsFileError, match=r"s000001.h5 is no maps file"):
        writer.close()


def test_a_damaged_shard_goes_to_quarantine_and_its_images_are_captured_again(tmp_path, ten_maps, small_shards):
    folder = capture(tmp_path / "maps.h5", [ten_maps], keep_shards=True)
    for round_ in range(2):
        shard = shard_path(folder, 1)
        content = bytearray(shard.read_bytes())
        content[1000 + round_] ^= 1
        shard.write_bytes(content)
        with MapWriter(tmp_path / "maps.h5", plan_for([ten_maps]), keep_shards=True) as again:
            assert again.pending() == [range(4, 8)]
            again.append([ten_maps.images(4, 8)])
    assert sorted(os.listdir(folder / "quarantine")) == ["s000001-1.h5", "s000001.h5"]
    capture(tmp_path / "maps.h5", [ten_maps])
    assert torch.equal(stored(tmp_path / "maps.h5")["trunk", "weights"].values, ten_maps.values.bfloat16().float())
    assert len(os.listdir(folder / "quarantine")) == 2, "what was damaged is never deleted"


def test_images_out_of_turn_are_refused(tmp_path, ten_maps, make_maps, small_shards):
    with MapWriter(tmp_path / "maps.h5", plan_for([ten_maps])) as maps_writer:
        with pytest.raises(InputError, match="plan order"):
            maps_writer.append([make_maps(images=12).images(9, 12)])
        maps_writer.append([ten_maps.images(0, 2)])
        with pytest.raises(InputError, match=r"'image3' \(position 3\) came where position 2 was next"):
            maps_writer.append([ten_maps.images(3, 5)])
        with pytest.raises(InputError, match="came where position 2"):
            maps_writer.append([ten_maps.images(4, 8)])
        maps_writer.append([ten_maps.images(2, 8)])
        with pytest.raises(InputError, match="stored already"):
            maps_writer.append([ten_maps.images(0, 4)])
        with pytest.raises(InputError, match="different images, or none"):
            maps_writer.append([])
        with pytest.raises(InputError, match="different images"):
            maps_writer.append([ten_maps.images(8, 10), ten_maps.images(7, 9)])
        maps_writer.append([ten_maps.images(8, 10)])


def test_maps_unlike_the_first_ones_are_refused_by_name(tmp_path, make_maps):
    maps = make_maps(images=6)
    other = make_maps(images=6, heads=3)
    scores = AttentionMaps(maps.values, maps.image_ids, maps.grid, site="scores", stochastic=False)
    with pytest.raises(WorkError), MapWriter(tmp_path / "maps.h5", plan_for([maps])) as maps_writer:
        maps_writer.append([maps.images(0, 2)])
        with pytest.raises(InputError, match=r"trunk/weights is \(3, 3, 7, 7\).* not \(3, 2, 7, 7\)"):
            maps_writer.append([other.images(2, 4)])
        with pytest.raises(InputError, match=r"stage trunk has \['weights', 'scores'\], not \['weights'\]"):
            maps_writer.append([maps.images(2, 4), scores.images(2, 4)])
        with pytest.raises(InputError, match="append each site once"):
            maps_writer.append([maps.images(2, 4), maps.images(2, 4)])


def test_sites_and_tokens_that_disagree_are_a_shape_error(tmp_path, make_maps):
    maps = make_maps()
    scores = AttentionMaps(maps.values[:, :2], maps.image_ids, maps.grid, site="scores")
    tokens = AttentionMaps(maps.values, maps.image_ids, maps.grid, tokens=torch.rand(2, 5, 7, 4))
    for wrong, says in (([maps, scores], "must agree in shape"), ([tokens], "tokens must be")):
        with pytest.raises(ShapeError, match=says):
            capture(tmp_path / "maps.h5", wrong)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [("maps.hdf5", {}, "ends in .h5"), ("maps.h5", {"dtype": "bfloat61"}, "Did you mean 'bfloat16'")],
)
def test_wrong_names_and_types_are_refused(tmp_path, ten_maps, name, options, says):
    with pytest.raises(InputError, match=says):
        MapWriter(tmp_path / name, plan_for([ten_maps]), **options)
    assert os.listdir(tmp_path) == []


def test_the_caller_goes_on_while_one_batch_is_stored_and_waits_before_the_next(tmp_path, ten_maps, monkeypatch):
    allowed, inside, add = threading.Event(), threading.Event(), Shard.add

    def slow(self, maps):
        inside.set()
        assert allowed.wait(20)
        add(self, maps)

    monkeypatch.setattr(Shard, "add", slow)
    with MapWriter(tmp_path / "maps.h5", plan_for([ten_maps])) as maps_writer:
        maps_writer.append([ten_maps.images(0, 3)])  # returns while the thread is still in `add`
        assert inside.wait(20) and not maps_writer._work.done()
        second = threading.Thread(target=maps_writer.append, args=([ten_maps.images(3, 10)],))
        second.start()
        second.join(0.2)
        assert second.is_alive(), "a second batch waits for the first: never more than one is held"
        allowed.set()
        second.join(20)
        assert not second.is_alive()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stored_batches_are_not_held_any_longer(tmp_path, make_maps, dtype):
    """Capture takes the memory of a batch back when nobody holds a view of it."""
    maps = make_maps(images=4, dtype=dtype)
    with MapWriter(tmp_path / "maps.h5", plan_for([maps])) as maps_writer:
        for start in (0, 2):
            memory = maps.values[start : start + 2].view(torch.uint8).numpy().copy()
            values = torch.from_numpy(memory).view(dtype)
            gone = weakref.ref(memory)
            part = AttentionMaps(values, maps.image_ids[start : start + 2], maps.grid)
            maps_writer.append([part])
            maps_writer.pending()
            del part, values, memory
            assert gone() is None
    assert torch.equal(stored(tmp_path / "maps.h5")["trunk", "weights"].values, maps.values.bfloat16().float())


def test_everything_is_durable_before_it_is_named_and_named_before_something_is_removed(
    tmp_path, ten_maps, small_shards, monkeypatch
):
    done = []
    monkeypatch.setattr(fs, "_strikes", lambda operation: done.append(operation) or "")
    capture(tmp_path / "maps.h5", [ten_maps])
    name = ["link", "unlink", "fsync_folder"]
    commit = ["create", "reserve", "write", "fsync", *name]
    folder = ["make_folder", "fsync_folder"]
    certificate = ["create", "reserve", "write", "fsync", "rename", "fsync_folder"]
    merged = ["write", "fsync", *name]
    removal = ["unlink"] * 3 + ["unlink", "fsync_folder", "fsync_folder", "unlink", "fsync_folder"]
    assert done == [*folder, *folder, *commit, *commit * 3, *certificate, *merged, *removal]
