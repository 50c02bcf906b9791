import zlib

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.store.deflate import shuffled_deflated


def unshuffled(data, dtype):
    """What HDF5 does on reading: inflate, then the bytes of each word from their planes."""
    planes = np.frombuffer(zlib.decompress(data), np.uint8).reshape(np.dtype(dtype).itemsize, -1)
    return np.ascontiguousarray(planes.T).view(dtype).reshape(-1)


@given(
    seed=st.integers(0, 2**16),
    size=st.sampled_from([1, 2, 100, 16384, 16385, 65535, 65536, 200_000]),
    dtype=st.sampled_from(["<u2", "<u4"]),
    bits=st.integers(0, 32),
)
@settings(max_examples=60, deadline=None)
def test_zlib_gets_every_word_back(seed, size, dtype, bits):
    limit = min(2**bits, np.iinfo(dtype).max)
    chunk = np.random.default_rng(seed).integers(0, limit, size, dtype=dtype, endpoint=True)
    np.testing.assert_array_equal(unshuffled(shuffled_deflated(chunk), dtype), chunk)


def test_noise_grows_by_headers_only_and_constants_vanish():
    noise = np.random.default_rng(0).integers(0, 2**16, 100_000, dtype=np.uint16)
    assert len(shuffled_deflated(noise)) < noise.nbytes + 100
    assert len(shuffled_deflated(np.full(100_000, 0x3F80, np.uint16))) < 2000


def test_noise_beside_structure_keeps_only_the_structure_compressed():
    mantissa = np.random.default_rng(0).integers(0, 256, 100_000, dtype=np.uint16)
    size = len(shuffled_deflated(0x3F00 + mantissa))
    assert 100_000 < size < 102_000
