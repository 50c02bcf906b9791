"""Nothing in a file that is opened leads outside of it."""

import h5py
import numpy as np
import pytest

from attnprobe.core.errors import MapsFileError
from attnprobe.store import opening
from attnprobe.store.history import _seal, read_history, write_history
from attnprobe.store.opening import open_hdf5
from tests.histories import history

SECRET = "TOP-SECRET-BYTES"


@pytest.fixture
def secret(tmp_path):
    (tmp_path / "secret.txt").write_text(SECRET * 4)
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["x"] = np.arange(8.0)
    return tmp_path


def external(file, name, where):
    file.create_dataset(name, (8,), "u1", external=[(str(where / "secret.txt"), 0, 8)])


def virtual(file, name, where):
    layout = h5py.VirtualLayout((8,), "f8")
    layout[:] = h5py.VirtualSource(str(where / "secret.h5"), "x", (8,))
    file.create_virtual_dataset(name, layout)


OUTSIDE = {
    "external storage": external,
    "virtual dataset": virtual,
    "external link": lambda file, name, where: file.__setitem__(
        name, h5py.ExternalLink(str(where / "secret.h5"), "/x")
    ),
    "soft link": lambda file, name, where: file.__setitem__(name, h5py.SoftLink("/epoch")),
    "named type": lambda file, name, where: file.__setitem__(name, np.dtype("f8")),
    "huge": lambda file, name, where: file.create_dataset(name, (2**30, 2**14), "f4", chunks=(1, 64)),
}


@pytest.mark.parametrize("kind", OUTSIDE)
@pytest.mark.parametrize("place", ["blocks/row_entropy", "epoch", "extra", "extra/deep"])
def test_a_probes_history_with_a_right_hash_reads_nothing_else(secret, kind, place):
    write_history(secret / "probe", history())
    path = secret / "probe" / "probe.h5"
    with h5py.File(path, "r+") as file:
        if place in file:
            del file[place]
        OUTSIDE[kind](file, place, secret)
    content = bytearray(path.read_bytes())
    content[:512] = _seal(bytes(content[512:]))
    path.write_bytes(content)
    with pytest.raises(MapsFileError, match="is refused") as caught:
        read_history(secret / "probe")
    assert SECRET not in str(caught.value) and "\n" not in str(caught.value)


def test_groups_that_hold_one_another_are_walked_once(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["a/b/x"] = np.ones(3)
        file["a/b/up"] = file["a"]
        file["a/root"] = file["/"]
    with open_hdf5(tmp_path / "a.h5") as file:
        assert file["a/b/up/b/x"][0] == 1


def test_no_hdf5_file_and_too_many_objects_are_one_line(tmp_path, monkeypatch):
    (tmp_path / "a.h5").write_bytes(b"x" * 4000)
    with pytest.raises(MapsFileError, match="cannot be read"):
        open_hdf5(tmp_path / "a.h5")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        for name in "abcd":
            file.create_group(name)
    monkeypatch.setattr(opening, "MOST_OBJECTS", 3)
    with pytest.raises(MapsFileError, match="one of too many"):
        open_hdf5(tmp_path / "b.h5")
