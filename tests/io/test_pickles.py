"""Pickles are followed before they are read, and numpy's arrays are built by the names of their types alone."""

import io
import pickle
import random

import numpy as np
import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.io.pickles import MOST_ODD, SavedArray, SavedType, load_tensors, require_bounded
from attnprobe.store.saved_arrays import _ArrayUnpickler
from tests.hostile.checkpoints import OPERATIONS, doubled_tuple, of_addresses

ARRAYS = [
    np.arange(6.0).reshape(2, 3), np.asfortranarray(np.arange(6, dtype="f2").reshape(2, 3)), np.array([True, False]),
    np.arange(3, dtype=">i4"), np.array(["a", "é"]), np.array(1 + 2j), np.zeros((0, 3), "f4"), np.array([b"x"]),
    np.array([[1], "x", None], object),
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(2, 5))
@pytest.mark.parametrize("array", ARRAYS, ids=lambda array: array.dtype.str)
def test_an_array_is_read_as_numpy_reads_it(array, protocol):
    data = pickle.dumps([array, array], protocol)
    require_bounded(io.BytesIO(data))
    first, second = _ArrayUnpickler(io.BytesIO(data)).load()
    assert first is second and isinstance(first, np.ndarray) and first.dtype == pickle.loads(data)[0].dtype
    np.testing.assert_array_equal(first, array)


@pytest.mark.parametrize("kind", ["f2", "f4", "f8", "i2", "i4", "i8", "u1", "?", "c8"])
def test_arrays_and_numbers_of_numpy_come_with_tensors(kind):
    value = np.arange(6).reshape(2, 3).astype(kind)
    for zipped in (True, False):
        torch.save({"a": value, "b": value[1, 1], "w": torch.ones(2)}, file := io.BytesIO(),
                   _use_new_zipfile_serialization=zipped)  # fmt: skip
        file.seek(0)
        found = load_tensors(file)
        np.testing.assert_array_equal(found["a"], value)
        assert found["b"] == value[1, 1] and found["b"].dtype == value.dtype and torch.equal(found["w"], torch.ones(2))


@pytest.mark.parametrize("kind", ["O8", "O", "V8", "f8,O", "(2,)O", "U2"])
@pytest.mark.parametrize("flags", [b"K\x00", b"K\x3f"])
def test_no_pickle_makes_objects_of_bytes(kind, flags):
    data = b"\x80\x02" + of_addresses(kind, flags) + b"."
    require_bounded(io.BytesIO(data))
    try:
        array = _ArrayUnpickler(io.BytesIO(data)).load()
    except (TypeError, ValueError):
        return
    assert isinstance(array, SavedArray) and not array.dtype.hasobject and array.dtype.names is None


@pytest.mark.parametrize(
    "state",
    [(1, (2**40,), "f8", False, b"12345678"), (1, (-1, -1), "f8", False, b"12345678"), (1, (1,), "f8", False, b"1"),
     (1, (1,), "f8", False, "12345678"), (1, (True,), "f8", False, b"12345678"), (1, (1,), "f8", False, [1.0])],
)  # fmt: skip
def test_an_array_has_the_bytes_that_its_shape_needs(state):
    version, shape, kind, order, data = state
    with pytest.raises((TypeError, ValueError)):
        SavedArray().__setstate__((version, shape, SavedType(kind), order, data))


@pytest.mark.parametrize("name", sorted(set(OPERATIONS) - {"addresses", "addresses_named"}))
def test_what_would_be_hashed_for_ever_or_fill_the_memory_is_refused(name):
    with pytest.raises(InputError, match="refused"):
        require_bounded(io.BytesIO(b"\x80\x02" + OPERATIONS[name] + b"."))


def test_every_pickle_of_a_stream_is_followed():
    whole = pickle.dumps([1, {"a": 2}])
    hostile = b"\x80\x02}" + doubled_tuple(60) + b"Ns."
    for before in range(5):
        with pytest.raises(InputError):
            require_bounded(io.BytesIO(whole * before + hostile), 5)
    require_bounded(io.BytesIO(whole * 5 + hostile), 5)
    require_bounded(io.BytesIO(whole * 2), 5)


def nested(chance, depth):
    """A random tree of what pickles hold, parts of which are shared."""
    if depth == 0:
        return chance.choice([None, True, 7, 2**70, -(2**40), 0.5, "text" * 50, b"bytes", ("a", 1), np.float32(2), 1j])
    parts = [nested(chance, depth - 1) for _ in range(3)]
    parts += parts[:1]
    kind = chance.randrange(4)
    if kind == 0:
        return {str(i): part for i, part in enumerate(parts)}
    return tuple(parts) if kind == 1 else {i: (part,) for i, part in enumerate(parts)} if kind == 2 else parts


@pytest.mark.parametrize("protocol", range(5))
def test_what_programs_save_is_followed_to_its_end(protocol):
    chance = random.Random(protocol)
    for _ in range(20):
        data = pickle.dumps((nested(chance, 3), {1, "a"}, frozenset("ab"), {("k", 1): 2}), protocol)
        file = io.BytesIO(data + b"rest")
        require_bounded(file)
        assert file.tell() == len(data)


def test_a_large_training_state_is_no_hostile_file():
    """Two thousand tensors, a list of 100,000 numbers, and as many tuples as keys as are allowed."""
    state = {f"blocks.{i}.attention.weight": torch.zeros(2, 3) for i in range(2_000)}
    more = {"seen": list(range(100_000)), "by": {(i, "x"): i for i in range(MOST_ODD)}, "random": random.getstate()}
    torch.save({"state_dict": state, **more}, file := io.BytesIO())
    file.seek(0)
    found = load_tensors(file)
    assert len(found["state_dict"]) == 2_000 and found["by"][5, "x"] == 5 and found["random"] == random.getstate()


@pytest.mark.parametrize(
    "data", [b"\x80\x02.", b"\x80\x02s.", b"\x80\x02h\x01.", b"\x80\x02]", b"\x80\x02(u.", b"\xff"]
)
def test_a_damaged_pickle_is_an_error_of_its_own(data):
    with pytest.raises(ValueError) as caught:
        require_bounded(io.BytesIO(data))
    assert not isinstance(caught.value, InputError)
