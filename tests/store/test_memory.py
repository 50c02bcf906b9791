"""Memory that is used again is a file like any other."""

import io
import os
import tempfile

from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.store.memory import Memory

OPERATIONS = st.one_of(
    st.tuples(st.just("write"), st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("seek"), st.integers(0, 150)),
    st.tuples(st.just("truncate"), st.integers(0, 150)),
    st.tuples(st.just("read"), st.integers(0, 40)),
    st.tuples(st.just("empty"), st.none()),
)


@given(st.lists(OPERATIONS, max_size=30))
@settings(max_examples=300, deadline=None)
def test_it_is_a_file_whatever_was_in_it_before(operations):
    with tempfile.TemporaryFile(buffering=0) as theirs:
        assert_same_file(Memory(), theirs, operations)


def assert_same_file(ours, theirs, operations):
    for operation, argument in operations:
        if operation == "empty":
            ours.empty()
            theirs.seek(0)
            theirs.truncate()
        else:
            assert getattr(ours, operation)(argument) == getattr(theirs, operation)(argument)
        assert ours.tell() == theirs.tell() and bytes(ours.content()) == os.pread(theirs.fileno(), 1 << 20, 0)
    assert ours.seek(0, io.SEEK_END) == theirs.seek(0, io.SEEK_END) and ours.seek(0, io.SEEK_CUR) == ours.tell()


def test_a_second_file_of_the_same_size_needs_no_more_memory():
    memory = Memory()
    memory.write(bytes(10_000))
    allocated = len(memory._bytes)
    memory.empty().write(b"x" * 10_000)
    assert len(memory._bytes) == allocated and bytes(memory.content()) == b"x" * 10_000
