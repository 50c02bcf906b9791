import io
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from attnprobe.core.errors import MapsFileError
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.store import open_maps, seal
from tests.store.capturing import capture


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    tokens = torch.rand(3, 2, 5, 4)
    maps = AttentionMaps(torch.rand(3, 2, 2, 5, 5), ("a", "b", "c"), TokenGrid(2, 2), tokens=tokens)
    return capture(tmp_path_factory.mktemp("honest") / "maps.h5", [maps])


@pytest.fixture
def forge(honest, tmp_path):
    """A file changed by someone who can compute hashes: `forge(change)` returns its path, sealed anew."""
    path = Path(shutil.copy(honest, tmp_path))

    def change_and_seal(change):
        with h5py.File(path, "r+") as file:
            change(file)
        content = bytearray(path.read_bytes())
        content[:512] = seal.seal_merged(seal.read_seal(honest).plan, io.BytesIO(content), []).block()
        path.write_bytes(content)
        return path

    return change_and_seal


def replaced(name, make):
    def change(file):
        group, leaf = file[name].parent, name.rsplit("/", 1)[1]
        del group[leaf]
        make(group, leaf)

    return change


WEIGHTS, TOKENS, ID, LABEL = "stages/trunk/weights", "stages/trunk/tokens", "images/id", "images/label"
SHAPE = (3, 2, 2, 5, 5)


def virtual(group, leaf):
    layout = h5py.VirtualLayout(SHAPE, "f4")
    layout[:] = h5py.VirtualSource("/nonexistent.h5", "x", SHAPE)
    group.create_virtual_dataset(leaf, layout)


def external(shape, dtype):
    outside = [("/etc/hostname", 0, h5py.h5f.UNLIMITED)]
    return lambda group, leaf: group.create_dataset(leaf, shape, dtype, external=outside)


def chunked(**options):
    return lambda group, leaf: group.create_dataset(leaf, data=np.ones(SHAPE, "f4"), chunks=SHAPE, **options)


def without_last_chunk(group, leaf):
    type_ = h5py.h5t.IEEE_F32LE.copy()
    type_.set_fields(15, 7, 8, 0, 7), type_.set_size(2), type_.set_ebias(127)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk((256, *SHAPE[1:]))
    space = h5py.h5s.create_simple(SHAPE, (256, *SHAPE[1:]))
    h5py.h5d.create(group.id, leaf.encode(), type_, space, properties)


FORGERIES = {
    "external link": (replaced(WEIGHTS, lambda g, n: g.__setitem__(n, h5py.ExternalLink("/x.h5", "/y"))), "is a link"),
    "soft link": (replaced(WEIGHTS, lambda g, n: g.__setitem__(n, h5py.SoftLink("/images/label"))), "is a link"),
    "soft link to itself": (replaced(WEIGHTS, lambda g, n: g.__setitem__(n, h5py.SoftLink(g.name))), "is a link"),
    "linked group": (lambda f: (f.move("stages", "s"), f.__setitem__("stages", h5py.SoftLink("/s"))), "is a link"),
    "virtual dataset": (replaced(WEIGHTS, virtual), "outside the file"),
    "external maps": (replaced(WEIGHTS, external(SHAPE, "f4")), "outside the file"),
    "external labels": (replaced(LABEL, external((3,), "i8")), "outside the file"),
    "external axis": (replaced("stages/trunk/layer", external((2,), "f4")), "outside the file"),
    "another filter": (replaced(WEIGHTS, chunked(compression="lzf")), "a filter other than"),
    "another type": (replaced(WEIGHTS, chunked(compression="gzip")), "has shape and chunk"),
    "another shape": (replaced(WEIGHTS, lambda g, n: g.create_dataset(n, data=np.ones((3, 2)))), "has shape and chunk"),
    "a huge shape": (
        replaced(WEIGHTS, lambda g, n: g.create_dataset(n, (2**20, 2**20), "f4", chunks=(1, 1024))),
        "declares 43980465115",
    ),
    "labels of another length": (
        replaced(LABEL, lambda g, n: g.create_dataset(n, data=np.ones(4, "i8"))),
        "expected i8",
    ),
    "a group for a dataset": (replaced(TOKENS, lambda g, n: g.create_group(n)), "is no dataset"),
    "a hard link to the root": (replaced(TOKENS, lambda g, n: g.__setitem__(n, g.file["/"])), "is no dataset"),
    "missing tokens": (lambda f: f.__delitem__(TOKENS), "'tokens' in /stages/trunk is missing"),
    "an extra dataset": (lambda f: f.create_dataset("images/exif", data=1), "'exif' in /images is not part"),
    "an extra stage": (lambda f: f.create_group("stages/more"), "'more' in /stages is not part"),
    "lost chunks": (replaced(WEIGHTS, without_last_chunk), "0 of 1 chunks"),
    "other ids": (lambda f: f[ID].__setitem__(0, "z"), "its image ids are not those of its plan"),
    "other plan": (lambda f: f.attrs.__setitem__("plan", f.attrs["plan"].replace("vit", "cnn")), "its plan is not"),
    "other certificate": (lambda f: f.attrs.__setitem__("certificate", "{}"), "its certificate is damaged"),
    "no certificate": (lambda f: f.attrs.__setitem__("certificate", "{"), "cannot be read"),
    "no plan": (lambda f: f.attrs.__delitem__("plan"), "cannot be read"),
    "other number of images": (lambda f: f.attrs.__setitem__("n_images", 4), "4 images where its plan has 3"),
    "newer schema": (lambda f: f.attrs.__setitem__("schema_version", 2), "schema 2"),
}


@pytest.mark.parametrize("name", FORGERIES)
def test_a_forged_structure_is_refused(forge, name):
    change, says = FORGERIES[name]
    with pytest.raises(MapsFileError, match=says) as caught:
        open_maps(forge(change))
    assert "\n" not in str(caught.value)


def test_the_forger_of_these_tests_can_make_a_file_that_passes(forge):
    with open_maps(forge(lambda file: None)) as reader:
        assert reader.n_images == 3


def test_more_bytes_declared_than_deflate_can_hold_are_refused(tmp_path, monkeypatch):
    from attnprobe.store import opening

    maps = AttentionMaps(torch.ones(2, 1, 1, 500, 500), ("a", "b"), TokenGrid(1, 1), kind="cross")
    path = capture(tmp_path / "maps.h5", [maps])
    with open_maps(path) as reader:
        assert torch.equal(reader.maps().values, maps.values)
    monkeypatch.setattr(opening, "ALWAYS_ALLOWED", 1000)
    monkeypatch.setattr(opening, "LARGEST_RATIO", 10)
    with pytest.raises(MapsFileError, match="declares 100"):
        open_maps(path)


def test_whatever_libhdf5_raises_becomes_one_line(forge):
    """Damage under a right hash, as a forger or a faulty memory would leave it."""
    path = forge(lambda file: None)
    content, refused = path.read_bytes(), 0
    for position in range(512, 2500, 7):
        copy = bytearray(content)
        copy[position] ^= 0x55
        copy[:512] = seal.seal_merged(seal.read_seal(path).plan, io.BytesIO(copy), []).block()
        path.write_bytes(copy)
        try:
            with open_maps(path) as reader:
                reader.maps()
        except MapsFileError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused > 100


def test_the_body_opens_without_the_block_too(tmp_path, make_maps):
    content = capture(tmp_path / "maps.h5", [make_maps(images=3)]).read_bytes()
    with h5py.File(io.BytesIO(content), "r") as file:
        assert file.userblock_size == 512 and set(file) == {"images", "stages"}
