"""Files of arrays are read in time and memory that their size bounds."""

import pickle

import numpy as np
import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.store.saved_arrays import read_arrays

MAPS = np.ones((2, 3, 4, 4), "f4")


def often(leaf, times, depth, of):
    for _ in range(depth):
        leaf = of([leaf] * times)
    return leaf


@pytest.mark.parametrize("of", [list, tuple, lambda parts: {str(i): part for i, part in enumerate(parts)}])
@pytest.mark.parametrize("ending", ["pkl", "pt"])
def test_a_small_file_that_names_one_container_often_is_refused(tmp_path, of, ending):
    path = tmp_path / f"a.{ending}"
    if ending == "pkl":
        path.write_bytes(pickle.dumps(often(MAPS[:1, :1, :1, :1], 40, 6, of)))
    else:
        torch.save(often(torch.ones(1, 1, 1, 1), 40, 6, of), path)
    assert path.stat().st_size < 20_000
    with pytest.raises(InputError, match="hold more than 100000 entries"):
        read_arrays(path)


def test_a_large_array_that_is_named_often_is_refused(tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([np.ones((1, 4, 512, 512), "f4")] * 1000))
    with pytest.raises(InputError, match="expand far beyond its size"):
        read_arrays(tmp_path / "a.pkl")


def test_a_container_that_two_names_share_is_read_by_both(tmp_path):
    shared = [MAPS, MAPS + 1]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"a": shared, "b": shared, "meta": {"seed": 1}}))
    assert list(read_arrays(tmp_path / "a.pkl")) == ["a.0", "a.1", "b.0", "b.1"]
