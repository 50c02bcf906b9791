import hashlib
import io
import json

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from attnprobe.core.errors import MapsFileError
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.store import open_maps, seal
from attnprobe.store.parts import open_shard, shard_path
from attnprobe.store.plan import canonical, read_plan
from tests.store.capturing import capture


def damaged_copies(content, n, seed=0):
    """`n` copies with one byte changed: every byte of the first 600, the others anywhere."""
    generator = np.random.default_rng(seed)
    positions = [*range(600), *generator.integers(0, len(content), n - 600)]
    for position in positions:
        copy = bytearray(content)
        copy[position] ^= int(generator.integers(1, 256))
        yield position, bytes(copy)


@pytest.mark.promise("maps-changed")
def test_every_changed_byte_of_a_merged_file_is_found_before_hdf5_sees_it(
    tmp_path, ten_maps, monkeypatch, record_property
):
    path = capture(tmp_path / "maps.h5", [ten_maps])
    content = path.read_bytes()
    monkeypatch.setattr(h5py, "File", None)  # calling it would be a TypeError
    for position, copy in damaged_copies(content, 3000):
        path.write_bytes(copy)
        with pytest.raises(MapsFileError) as caught:
            open_maps(path)
        assert "\n" not in str(caught.value), position
    record_property("tried", 3000)


@pytest.mark.promise("maps-changed")
def test_every_changed_byte_of_a_shard_is_found_before_hdf5_sees_it(
    tmp_path, ten_maps, small_shards, monkeypatch, record_property
):
    folder = capture(tmp_path / "maps.h5", [ten_maps], keep_shards=True)
    plan_id = read_plan(folder)[0].plan_id
    path = shard_path(folder, 1)
    content = path.read_bytes()
    monkeypatch.setattr(h5py, "File", None)
    for _, copy in damaged_copies(content, 3000):
        path.write_bytes(copy)
        with pytest.raises(MapsFileError):
            open_shard(folder, 1, plan_id)
    record_property("tried", 3000)


@pytest.mark.promise("maps-changed")
@pytest.mark.slow
@pytest.mark.parametrize("merged", [True, False])
def test_ten_thousand_changed_bytes_and_every_kind_of_length_are_found(
    tmp_path, ten_maps, small_shards, monkeypatch, merged, record_property
):
    """The same at full number, with what was cut off or added at the end, and files cut and filled up again."""
    made = capture(tmp_path / "maps.h5", [ten_maps], keep_shards=not merged)
    path, plan_id = (made, "") if merged else (shard_path(made, 1), read_plan(made)[0].plan_id)
    content = path.read_bytes()
    generator = np.random.default_rng(1)
    cut = [content[:n] for n in generator.integers(0, len(content), 500)]
    filled = [part.ljust(len(content), b"\0") for part in cut]
    grown = [content + generator.bytes(int(n)) for n in generator.integers(1, 5000, 500)]
    copies = [copy for _, copy in damaged_copies(content, 10_000, seed=2)] + cut + grown
    copies += [copy for copy in filled if copy != content]
    monkeypatch.setattr(h5py, "File", None)
    for copy in copies:
        path.write_bytes(copy)
        with pytest.raises(MapsFileError) as caught:
            open_maps(path) if merged else open_shard(made, 1, plan_id)
        assert "\n" not in str(caught.value)
    record_property("tried", len(copies))


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_no_truncation_or_growth_passes(whole_file, data):
    path, content = whole_file
    size = data.draw(st.integers(0, len(content) + 50).filter(lambda n: n != len(content)))
    path.write_bytes(content[:size] + b"\0" * (size - len(content)))
    with pytest.raises(MapsFileError):
        open_maps(path)


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory):
    maps = AttentionMaps(torch.rand(2, 2, 2, 5, 5), ("a", "b"), TokenGrid(2, 2))
    path = capture(tmp_path_factory.mktemp("whole") / "maps.h5", [maps])
    return path, path.read_bytes()


def test_the_hashes_are_what_the_docstring_says(whole_file):
    path, content = whole_file
    path.write_bytes(content)
    block = json.loads(content[8:512].rstrip(b"\0"))
    ((start, stop),) = block["data"]
    outside, block["outside"] = block["outside"], ""
    prefix = canonical(block).encode() + b"\0"
    assert hashlib.sha256(prefix + content[512:start] + content[stop:]).hexdigest() == outside
    whole, block["sha256"] = block["sha256"], ""
    prefix = canonical(block).encode() + b"\0"
    assert hashlib.sha256(prefix + content[512:]).hexdigest() == whole
    assert content[:8] == b"ATPROBE\x01" and content[512:520] == b"\x89HDF\r\n\x1a\n"
    assert (block["part"], block["size"], block["v"]) == (None, len(content), 1)


def test_the_ranges_hold_the_chunks_and_nothing_else(tmp_path, ten_maps, small_shards):
    path = capture(tmp_path / "maps.h5", [ten_maps])
    found = seal.read_seal(path)
    with h5py.File(path) as file:
        chunks = file["stages/trunk/weights"].id
        places = [chunks.get_chunk_info(i) for i in range(chunks.get_num_chunks())]
    assert len(places) == 3
    assert list(found.data) == seal.joined((p.byte_offset, p.byte_offset + p.size) for p in places)


def test_ranges_that_touch_are_one_and_the_largest_are_named():
    assert seal.joined([(30, 40), (0, 10), (10, 20), (41, 50)]) == [(0, 20), (30, 40), (41, 50)]
    chunks = [(1000 * n, 1000 * n + 10 * n) for n in range(1, 8)]
    found = seal.seal_merged("id", io.BytesIO(bytes(9000)), chunks)
    assert list(found.data) == chunks[-4:] and found.size == 9000


def test_a_file_of_a_newer_schema_says_upgrade(whole_file):
    path, content = whole_file
    path.write_bytes(content[:512].replace(b'"v":1', b'"v":2') + content[512:])
    with pytest.raises(MapsFileError, match="schema 2, this attnprobe reads 1 to 1; upgrade attnprobe"):
        open_maps(path)


def test_the_first_bytes_have_one_spelling(whole_file):
    """The hash does not cover how its own JSON is written."""
    path, content = whole_file
    text = content[8:512].rstrip(b"\0")
    for other in (text + b" ", b" " + text, json.dumps(json.loads(text)).encode()):
        path.write_bytes(content[:8] + other.ljust(504, b"\0") + content[512:])
        with pytest.raises(MapsFileError, match="in its first 512 bytes"):
            open_maps(path)


def test_a_truncated_shard_is_found_before_anything_is_read(tmp_path, ten_maps, small_shards):
    folder = capture(tmp_path / "maps.h5", [ten_maps], keep_shards=True)
    content = shard_path(folder, 2).read_bytes()
    shard_path(folder, 2).write_bytes(content[:-1])
    with pytest.raises(MapsFileError, match=f"expected {len(content)} bytes, got {len(content) - 1}"):
        open_maps(folder)


def test_foreign_files_are_refused(tmp_path):
    with h5py.File(tmp_path / "foreign.h5", "w") as file:
        file["stages/trunk/weights"] = np.ones((1, 1, 1, 2, 2))
    (tmp_path / "text.h5").write_text("not HDF5 at all")
    (tmp_path / "empty.h5").write_bytes(b"")
    for name in ("foreign.h5", "text.h5", "empty.h5"):
        with pytest.raises(MapsFileError, match=f"{name} is no maps file of attnprobe"):
            open_maps(tmp_path / name)


@pytest.fixture
def large(monkeypatch):
    """Every file counts as too large to be hashed whole."""
    monkeypatch.setattr(seal, "HASH_AT_ONCE", 100)


def test_of_a_large_file_only_the_chunks_are_not_hashed_at_once(whole_file, large, monkeypatch):
    path, content = whole_file
    path.write_bytes(content)
    hashed, sha256 = [], hashlib.sha256

    class Counting:
        def __init__(self, data):
            self.sha256 = sha256(data)
            self.hexdigest = self.sha256.hexdigest

        def update(self, data):
            hashed.append(len(data))
            self.sha256.update(data)

    ((start, stop),) = seal.read_seal(path).data
    monkeypatch.setattr(seal.hashlib, "sha256", Counting)
    with open_maps(path) as reader:
        assert sum(hashed) == len(content) - 512 - (stop - start)
        reader.verify()
        assert sum(hashed) == 3 * (len(content) - 512) - 2 * (stop - start)


def test_of_a_large_file_a_changed_byte_is_found_before_hdf5_or_by_the_chunks_checksum(
    tmp_path, ten_maps, small_shards, large, monkeypatch
):
    path = capture(tmp_path / "maps.h5", [ten_maps])
    content, ranges = path.read_bytes(), seal.read_seal(path).data
    for position, copy in damaged_copies(content, 2000):
        path.write_bytes(copy)
        if any(start <= position < stop for start, stop in ranges):
            with open_maps(path) as reader, pytest.raises(MapsFileError, match="filter returned failure|Fletcher32"):
                reader.maps()
        else:
            with monkeypatch.context() as patch, pytest.raises(MapsFileError):
                patch.setattr(h5py, "File", None)
                open_maps(path)


def test_a_large_shard_is_hashed_whole(tmp_path, ten_maps, small_shards, large, monkeypatch):
    folder = capture(tmp_path / "maps.h5", [ten_maps], keep_shards=True)
    content = bytearray(shard_path(folder, 0).read_bytes())
    content[-3] ^= 1
    shard_path(folder, 0).write_bytes(content)
    monkeypatch.setattr(h5py, "File", None)
    with open_maps(folder) as reader, pytest.raises(MapsFileError, match="s000000.h5 is damaged"):
        reader.maps()


def test_verify_finds_a_changed_byte_in_a_large_file(whole_file, large, monkeypatch):
    path, content = whole_file
    monkeypatch.setattr(seal, "_STEP", 1000)
    for position in (100, 513, len(content) - 1):
        copy = bytearray(content)
        copy[position] ^= 4
        path.write_bytes(copy)
        with pytest.raises(MapsFileError):
            seal.verify(path)
    path.write_bytes(content)
    assert seal.verify(path).size == len(content)


def test_weights_in_place_of_maps_are_called_so_with_the_command_that_captures_them(tmp_path):
    torch.save({"a": torch.zeros(3)}, tmp_path / "my.pth")
    save_file({"a": torch.zeros(3)}, tmp_path / "my.safetensors")
    for path in (tmp_path / "my.pth", tmp_path / "my.safetensors"):
        with pytest.raises(MapsFileError, match=f"a model's weights, .*attnprobe capture {path} ") as caught:
            open_maps(path)
        assert "\\x" not in str(caught.value) and "HDF" not in str(caught.value)
