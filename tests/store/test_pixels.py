"""Hashes of pixels travel with the maps; files and folders of before they did are read, and gone on with."""

from dataclasses import replace

import h5py
import pytest
import torch

from attnprobe.store import MapWriter, hdf5, open_maps
from tests.store.capturing import capture, plan_for

pytestmark = pytest.mark.usefixtures("merging_here")

SEEN = torch.tensor([3, -5, 2**62, 7, 11, 3, 13, 17, 19, 23])


@pytest.fixture
def seen(ten_maps):
    return replace(ten_maps, pixels=SEEN)


@pytest.fixture
def before(monkeypatch):
    """What writes files as they were before: without the column."""

    def write(*args, **options):
        with monkeypatch.context() as earlier:
            earlier.delitem(hdf5.OUTCOMES, "pixels")
            return capture(*args, **options)

    return write


@pytest.mark.parametrize("keep_shards", [False, True])
def test_what_was_seen_comes_back_with_every_map(tmp_path, seen, small_shards, keep_shards):
    reader = open_maps(capture(tmp_path / "maps.h5", [seen], keep_shards=keep_shards))
    assert torch.equal(torch.cat([maps.pixels for maps in reader]), SEEN)
    assert torch.equal(reader.maps(images=[5, 0]).pixels, SEEN[[5, 0]])


def test_maps_of_unknown_pixels_have_none(tmp_path, ten_maps):
    assert open_maps(capture(tmp_path / "maps.h5", [ten_maps])).maps().pixels is None


@pytest.mark.parametrize("keep_shards", [False, True])
def test_what_was_written_without_hashes_opens(tmp_path, ten_maps, small_shards, before, keep_shards):
    path = before(tmp_path / "maps.h5", [ten_maps], keep_shards=keep_shards)
    if not keep_shards:
        assert "pixels" not in h5py.File(path)["images"]
    reader = open_maps(path)
    reader.verify()
    assert reader.maps().pixels is None and reader.labels.tolist() == ten_maps.outcome.labels.tolist()


def test_a_capture_that_began_without_hashes_is_finished_with_those_of_the_rest(
    tmp_path, seen, monkeypatch, small_shards
):
    plan, path = plan_for([seen]), tmp_path / "maps.h5"
    with monkeypatch.context() as earlier:
        earlier.delitem(hdf5.OUTCOMES, "pixels")
        with pytest.raises(KeyboardInterrupt), MapWriter(path, plan) as writer:
            writer.begin([seen.images(0, 1)])
            first = writer.pending()[0]
            writer.append([replace(seen.images(0, len(first)), pixels=None)])
            writer.pending()
            raise KeyboardInterrupt
    with MapWriter(path, plan) as writer:
        for positions in writer.pending():
            writer.append([seen.images(positions.start, positions.stop)])
        done = writer.close()
    expected = SEEN.clone()
    expected[: len(first)] = 0
    assert 0 < len(first) < 10 and torch.equal(open_maps(done).maps().pixels, expected)
