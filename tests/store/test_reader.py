import itertools
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import h5py
import numpy as np
import pytest
import torch
import xarray

from attnprobe.core.errors import InputError, MapsFileError
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.store import MapWriter, open_maps, seal
from attnprobe.store.parts import shard_path
from tests import unequal_heads
from tests.store.capturing import capture, plan_for

pytestmark = pytest.mark.usefixtures("merging_here")


@pytest.fixture(params=["file", "folder"])
def stored(request, tmp_path, ten_maps, small_shards):
    """The ten images as one file and as a folder of three shards."""
    return capture(tmp_path / "maps.h5", [ten_maps], keep_shards=request.param == "folder")


@pytest.fixture
def expected(ten_maps):
    return ten_maps.values.bfloat16().float()


def test_a_file_shows_its_model_and_its_stages_and_reads_no_map(stored, monkeypatch):
    reader = open_maps(stored)
    monkeypatch.setattr(type(reader), "_slices", None)
    assert f"<maps of {stored}: model vit; images 10; stage trunk self: 3 blocks, 2 heads, " in repr(reader)
    assert reader._repr_html_().startswith("<table>") and "weights" in reader._repr_html_()


BARE = """
import sys, json, h5py, numpy
assert "attnprobe" not in sys.modules and "torch" not in sys.modules
with h5py.File(sys.argv[1]) as file:
    weights = file["stages/trunk/weights"]
    assert weights.dtype == numpy.float32 and weights.compression == "gzip"
    numpy.save(sys.argv[2], weights[:])
    numpy.save(sys.argv[3], weights[0, 2])
    print(json.dumps({
        "scales": [dim[0].name for dim in weights.dims],
        "ids": [i.decode() for i in file["images/id"][:]],
        "labels": file["images/label"][:].tolist(),
        "root": {k: str(v) for k, v in file.attrs.items()},
        "stage": {k: numpy.asarray(v).tolist() for k, v in file["stages/trunk"].attrs.items()},
    }))
"""


def test_bare_h5py_reads_everything(tmp_path, ten_maps, expected, small_shards):
    path = capture(tmp_path / "maps.h5", [ten_maps])
    command = [sys.executable, "-I", "-c", BARE, path, tmp_path / "all.npy", tmp_path / "one.npy"]
    said = json.loads(subprocess.check_output(list(map(str, command)), cwd=tmp_path, text=True))
    np.testing.assert_array_equal(np.load(tmp_path / "all.npy"), expected.numpy())
    np.testing.assert_array_equal(np.load(tmp_path / "one.npy"), expected[0, 2].numpy())
    assert said["scales"] == [f"/stages/trunk/{axis}" for axis in ("image", "layer", "head", "query", "key")]
    assert said["ids"] == list(ten_maps.image_ids) and said["labels"] == ten_maps.outcome.labels.tolist()
    assert said["root"]["format"] == "attnprobe" and said["root"]["model"] == "vit"
    assert json.loads(said["root"]["config"]) == {"depth": 3, "heads": 2}
    assert json.loads(said["root"]["certificate"]) == {"output_equal": True}
    stage = {"kind": "self", "rows": 2, "cols": 3, "heads": 2, "patch": [4, 4], "prefix": ["cls"], "layers": []}
    assert said["stage"] == stage


def test_xarray_reads_named_axes(tmp_path, ten_maps, expected):
    path = capture(tmp_path / "maps.h5", [ten_maps])
    with xarray.open_dataset(path, group="stages/trunk", engine="h5netcdf") as data:
        assert data.weights.dims == ("image", "layer", "head", "query", "key") and set(data) == {"weights"}
        np.testing.assert_array_equal(data.weights.isel(image=3, layer=1), expected[3, 1].numpy())
    with xarray.open_dataset(path, group="images", engine="h5netcdf") as data:
        assert list(data.id.values) == list(ten_maps.image_ids) and data.label.dims == ("image",)


def test_a_changed_byte_in_a_chunk_raises_in_plain_h5py_too(tmp_path, make_maps):
    import h5py

    path = capture(tmp_path / "maps.h5", [make_maps(images=2, layers=2, rows=6, cols=6, spread=3.0)])
    with h5py.File(path) as file:
        place = file["stages/trunk/weights"].id.get_chunk_info(0)
    content = path.read_bytes()
    generator = np.random.default_rng(0)
    for position in generator.integers(place.byte_offset, place.byte_offset + place.size, 2000):
        copy = bytearray(content)
        copy[position] ^= 1 << int(generator.integers(8))
        path.write_bytes(copy)
        with h5py.File(path) as file, pytest.raises(OSError, match="filter returned failure|Fletcher32"):
            file["stages/trunk/weights"][:]


@pytest.mark.parametrize("chunk_images", [1, 3, 4, 100, None])
def test_iterating_gives_every_image_once_in_order(stored, ten_maps, expected, chunk_images):
    with open_maps(stored, chunk_images=chunk_images) as reader:
        assert len(reader) == reader.n_images == 10 and reader.complete
        came = list(reader)
    assert torch.equal(torch.cat([m.values for m in came]), expected)
    assert tuple(i for m in came for i in m.image_ids) == ten_maps.image_ids
    for name in ("labels", "prediction", "probability"):
        got = torch.cat([getattr(m.outcome, name) for m in came])
        assert torch.equal(got, getattr(ten_maps.outcome, name))
    assert chunk_images is None or all(m.n_images <= chunk_images for m in came)


@pytest.mark.parametrize(
    "images", [slice(None), slice(3, 9), slice(None, None, -3), [9, 0, 4, 5, 6, 3, 4], [-1], [], slice(4, 4)]
)
def test_any_images_in_any_order(stored, ten_maps, expected, images):
    with open_maps(stored) as reader:
        maps = reader.maps(images=images)
    places = list(range(10))[images] if isinstance(images, slice) else [i % 10 for i in images]
    assert torch.equal(maps.values, expected[places])
    assert maps.image_ids == tuple(ten_maps.image_ids[i] for i in places)
    assert maps.outcome.labels.tolist() == [int(ten_maps.outcome.labels[i]) for i in places]


def test_weights_that_are_effective_answer_to_both_names(stored):
    with open_maps(stored) as reader:
        maps = reader.maps(site="effective")
        assert maps.site == "weights" and maps.is_effective
        assert torch.equal(maps.values, reader.maps(site="weights").values)


def test_weights_that_are_not_effective_do_not_pass_for_them(tmp_path, make_maps):
    maps = make_maps(is_effective=False)
    missing = pytest.raises(InputError, match="has no 'effective' of stage 'trunk'")
    with open_maps(capture(tmp_path / "maps.h5", [maps])) as reader, missing:
        reader.maps(site="effective")


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ({"stage": "trnk"}, "no stage 'trnk'. Did you mean 'trunk'"),
        ({"site": "scores"}, "no 'scores' of stage 'trunk'. Known: weights"),
        ({"site": "tokens"}, "no 'tokens'"),
        ({"images": [3, 10]}, "images 0 to 9, asked for"),
    ],
)
def test_what_is_not_there_is_an_input_error(stored, question, says):
    with open_maps(stored) as reader, pytest.raises(InputError, match=says):
        reader.maps(**question)


def test_an_unfinished_folder_says_what_is_missing_and_gives_what_it_has_on_request(
    tmp_path, ten_maps, expected, small_shards
):
    folder = capture(tmp_path / "maps.h5", [ten_maps], keep_shards=True)
    shard_path(folder, 1).unlink()
    with pytest.raises(MapsFileError, match=r"1 of 3 shards missing \(the first is s000001.h5\).*allow_partial"):
        open_maps(folder)
    with pytest.raises(MapsFileError, match=r"no maps at .*maps.h5. .*maps.parts is there: open that"):
        open_maps(tmp_path / "maps.h5")
    with open_maps(folder, allow_partial=True) as reader:
        assert not reader.complete and not reader.attrs["complete"] and reader.attrs["n_images"] == 6
        there = [0, 1, 2, 3, 8, 9]
        assert reader.image_ids == tuple(ten_maps.image_ids[i] for i in there)
        assert torch.equal(reader.maps().values, expected[there])
        assert torch.equal(torch.cat([m.values for m in reader]), expected[there])
    for number in (0, 2):
        shard_path(folder, number).unlink()
    with pytest.raises(MapsFileError, match=r"3 of 3 shards missing.*to complete it\."):
        open_maps(folder, allow_partial=True)


@pytest.mark.promise("reading-meanwhile")
def test_a_folder_can_be_read_while_it_is_written(tmp_path, ten_maps, expected, small_shards):
    with MapWriter(tmp_path / "maps.h5", plan_for([ten_maps])) as writer:
        for start in range(0, 10, 2):
            writer.append([ten_maps.images(start, start + 2)])
            writer.pending()
            finished = (start + 2) // 4 * 4 if start < 8 else 10
            if finished:
                with open_maps(tmp_path / "maps.parts", allow_partial=True) as reader:
                    assert torch.equal(reader.maps().values, expected[:finished])


@pytest.mark.promise("reading-meanwhile")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on fork beside threads
def test_ten_thousand_reads_of_folders_that_are_being_written_give_right_values(
    tmp_path, ten_maps, expected, small_shards, merging_here, record_property
):
    reads, seen = 0, set()
    for n in itertools.count():
        path = tmp_path / str(n) / "maps.h5"
        path.parent.mkdir()
        child = os.fork()
        if child == 0:
            capture(path, [ten_maps], batch=1)
            os._exit(0)
        while os.waitpid(child, os.WNOHANG)[0] == 0:
            for place in (path, path.with_suffix(".parts")):
                try:
                    with open_maps(place, allow_partial=True) as reader:
                        positions = [ten_maps.image_ids.index(name) for name in reader.image_ids]
                        assert torch.equal(reader.maps().values, expected[positions])
                        seen.add(len(positions))
                except MapsFileError as error:  # not there yet, or gone meanwhile
                    assert re.search(
                        "no maps at|holds no maps|shards missing|No such file|Is a directory", str(error)
                    ), error
                reads += 1
        if reads >= 10_000:
            break
    assert seen >= {4, 8, 10}, "reads fell between the commits of the three shards"
    record_property("tried", reads)


def test_a_damaged_shard_of_a_folder_is_found_when_it_is_read(tmp_path, ten_maps, expected, small_shards):
    folder = capture(tmp_path / "maps.h5", [ten_maps], keep_shards=True)
    content = bytearray(shard_path(folder, 2).read_bytes())
    content[-5] ^= 1
    shard_path(folder, 2).write_bytes(content)
    with open_maps(folder) as reader:
        assert torch.equal(reader.maps(images=slice(0, 8)).values, expected[:8])
        with pytest.raises(MapsFileError, match="s000002.h5 is damaged"):
            reader.maps(images=[8])
        with pytest.raises(MapsFileError, match="s000002.h5 is damaged"):
            reader.verify()


def test_a_shard_of_another_capture_is_not_mixed_in(tmp_path, ten_maps, small_shards):
    folders = [capture(tmp_path / f"{n}.h5", [ten_maps], keep_shards=True) for n in "ab"]
    os.replace(shard_path(folders[0], 1), shard_path(folders[1], 1))
    with pytest.raises(MapsFileError, match="s000001.h5 belongs to another capture"):
        open_maps(folders[1])
    os.replace(shard_path(folders[0], 2), shard_path(folders[0], 1))
    with pytest.raises(MapsFileError, match="s000001.h5 belongs to another capture"):
        open_maps(folders[0], allow_partial=True)


def test_a_shard_alone_points_to_its_folder(tmp_path, ten_maps, small_shards):
    folder = capture(tmp_path / "maps.h5", [ten_maps], keep_shards=True)
    with pytest.raises(MapsFileError, match=r"is shard 1 of a capture; open the folder .*maps.parts"):
        open_maps(shard_path(folder, 1))


def test_what_is_no_maps_at_all_is_one_line(tmp_path):
    (tmp_path / "some").mkdir()
    for path, says in ((tmp_path / "none.h5", "no maps at"), (tmp_path / "some", "holds no maps")):
        with pytest.raises(MapsFileError, match=says) as caught:
            open_maps(path)
        assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_maps_are_read_without_a_damaged_certificate_which_is_named(tmp_path, ten_maps):
    folder = capture(tmp_path / "maps.h5", [ten_maps], keep_shards=True)
    (folder / "certificate.json").write_text("{")
    with pytest.warns(UserWarning, match="its certificate is damaged"):
        reader = open_maps(folder)
    assert reader.attrs["certificate"] == {} and len(reader) == 10


def test_large_files_are_read_from_the_disk_and_a_bad_chunk_is_one_line(tmp_path, make_maps, monkeypatch):
    maps = make_maps(images=4, rows=6, cols=6, spread=3.0, dtype=torch.float32)
    path = capture(tmp_path / "maps.h5", [maps])
    monkeypatch.setattr(seal, "HASH_AT_ONCE", 100)
    with open_maps(path) as reader:
        assert torch.equal(reader.maps().values, maps.values.bfloat16().float())
        place = reader._open_file["stages/trunk/weights"].id.get_chunk_info(0)
    content = bytearray(path.read_bytes())
    content[place.byte_offset + place.size // 2] ^= 1
    path.write_bytes(content)
    with open_maps(path) as reader, pytest.raises(MapsFileError, match="is damaged: ") as caught:
        reader.maps()
    assert "\n" not in str(caught.value)


def test_reading_after_close(stored, expected):
    reader = open_maps(stored)
    reader.close()
    if stored.is_dir():
        assert torch.equal(reader.maps().values, expected)
    else:
        with pytest.raises(InputError, match="was closed; open it again"):
            reader.maps()


def test_iterated_pieces_are_bounded_in_bytes(tmp_path):
    maps = AttentionMaps(
        torch.rand(5, 2, 8, 512, 512).bfloat16(), tuple("abcde"), TokenGrid(1, 1), kind="cross"
    )  # 16 MB each
    with open_maps(capture(tmp_path / "maps.h5", [maps], batch=1)) as reader:
        assert [m.n_images for m in reader] == [4, 1]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_one_layer_is_the_same_as_in_all_of_them(tmp_path, ten_maps, small_shards, dtype):
    for folder in (False, True):
        path = capture(tmp_path / f"{folder}.h5", [ten_maps], keep_shards=folder, dtype=dtype)
        with open_maps(path) as reader:
            values = reader.maps(site="weights").values
            for image, layer in ((0, 0), (9, 2), (5, 1)):
                came = reader.layer("trunk", "weights", image, layer)
                assert came.dtype == np.float32
                np.testing.assert_array_equal(came, values[image, layer].numpy())
            outcome = ten_maps.outcome
            expected = (int(outcome.labels[7]), int(outcome.prediction[7]), float(outcome.probability[7]))
            assert reader.told(7) == expected
            for wrong in (("trunk", "tokens", 0, 0), ("trunk", "weights", 10, 0), ("trunk", "weights", 0, 3)):
                with pytest.raises(InputError, match="has no"):
                    reader.layer(*wrong)
            (shape,) = reader.shapes()
            assert (shape.layers, shape.heads, shape.queries, shape.keys) == ((1, 2, 3), (1, 2), tuple(range(7)), 7)
            assert (shape.grid, shape.sites) == (ten_maps.grid, (("weights", True),))


def test_browsing_a_file_needs_no_torch(tmp_path, ten_maps):
    path = capture(tmp_path / "maps.h5", [ten_maps])
    code = (
        "import sys; from attnprobe.store.stored import StoredMaps; maps = StoredMaps.open(sys.argv[1]); "
        "print(maps.layer('trunk', 'weights', 1, 2).sum(), 'torch' in sys.modules)"
    )
    said = subprocess.check_output([sys.executable, "-c", code, str(path)], text=True).split()
    assert float(said[0]) == pytest.approx(14, rel=0.01) and said[1] == "False"


def test_explicit_positions_of_tokens_come_back_and_are_an_attribute(tmp_path, ten_maps, small_shards):
    grid = TokenGrid(4, 5, ("cls",), (4, 4), (7, 3, -1, 19, 0, 12, 5))
    path = capture(tmp_path / "maps.h5", [replace(ten_maps, grid=grid)])
    with open_maps(path) as reader:
        assert reader.maps(site="weights").grid == grid
        assert reader.shapes()[0].grid.slots == grid.slots
    with h5py.File(path) as file:
        assert file["stages/trunk"].attrs["positions"].tolist() == list(grid.positions)


def test_blocks_of_stages_that_differ_in_heads_alone_are_numbered_through_the_network(tmp_path):
    shapes = open_maps(unequal_heads.write(tmp_path / "maps.h5", heads=(3, 2, 3, 1))).shapes()
    assert [(shape.name, shape.layers) for shape in shapes] == [("trunk", (1, 3)), ("trunk_2", (2,)), ("trunk_3", (4,))]
