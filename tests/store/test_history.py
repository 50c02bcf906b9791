"""What is written is read back, or refused; and plain h5py and pandas read it, too."""

import h5py
import numpy as np
import pandas as pd
import pytest

from attnprobe.core.errors import MapsFileError, WorkError
from attnprobe.io import fs
from attnprobe.store.history import read_history, write_history
from tests.histories import history


def assert_same(one, other):
    assert one.epochs.tolist() == other.epochs.tolist()
    for part in ("blocks", "matrices", "uniform"):
        a, b = getattr(one, part), getattr(other, part)
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
    for name in ("training_seconds", "probe_seconds"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.settings, one.image_ids, one.alarms) == (other.settings, other.image_ids, other.alarms)


def test_everything_comes_back(tmp_path):
    first = history(alarms=[(3, "block 2 – é")])
    stages = {"stage 1/row_entropy": np.ones((7, 2)), **first.blocks}
    for h in (first, history(blocks=2, similar_from=4), history((5,)), history(blocks=1)):
        write_history(tmp_path / "probe", h)
        assert_same(read_history(tmp_path / "probe"), h)
    h = history(settings={**first.settings, "stage 1/row_entropy": {"x": None}})
    h.blocks["stage 1/row_entropy"] = stages["stage 1/row_entropy"]
    write_history(tmp_path / "probe", h)
    assert_same(read_history(tmp_path / "probe"), h)


def test_no_history_is_none(tmp_path):
    assert read_history(tmp_path) is None and read_history(tmp_path / "nowhere") is None


def test_others_read_it_with_h5py_and_pandas(tmp_path):
    h = history(alarms=[(3, "trouble")])
    write_history(tmp_path, h)
    with h5py.File(tmp_path / "probe.h5") as file:
        np.testing.assert_array_equal(file["matrices/layer_similarity"][:], h.matrices["layer_similarity"])
        np.testing.assert_array_equal(file["epoch"][:], h.epochs)
    # as text, for pandas before 3 misreads the last bits of a number
    table = pd.read_csv(tmp_path / "probe.csv", dtype=str)
    table["value"] = table["value"].map(float)
    assert list(table.columns) == ["epoch", "metric", "block", "value"]
    entropy = table[table.metric == "row_entropy"].pivot(index="epoch", columns="block", values="value")
    assert entropy.columns.tolist() == [*"123456"]
    np.testing.assert_array_equal(entropy.loc[[*map(str, h.epochs)]].to_numpy(), h.blocks["row_entropy"])
    assert table[table.metric == "probe_seconds"].value.tolist() == [0.05] * 7
    assert (tmp_path / "alarms.txt").read_text() == "epoch 3: trouble\n"


@pytest.mark.parametrize("at", [3, 40, 600, -1])
def test_damage_is_found_before_hdf5_looks(tmp_path, at):
    write_history(tmp_path, history())
    path = tmp_path / "probe.h5"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(MapsFileError, match="damaged or no history"):
        read_history(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(MapsFileError, match="damaged or no history"):
        read_history(tmp_path)


@pytest.mark.parametrize("operation", ["create", "reserve", "write", "fsync", "rename"])
def test_a_full_disk_leaves_the_history_before(tmp_path, monkeypatch, operation):
    write_history(tmp_path, history((1, 2)))
    monkeypatch.setattr(fs, "matched", 0)
    monkeypatch.setenv("ATTNPROBE_FAULT", f"{operation}:1:ENOSPC")
    with pytest.raises(WorkError, match="no space left"):
        write_history(tmp_path, history((1, 2, 3)))
    monkeypatch.delenv("ATTNPROBE_FAULT")
    assert_same(read_history(tmp_path), history((1, 2)))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["alarms.txt", "probe.csv", "probe.h5"]
