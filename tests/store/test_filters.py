import io
import zlib

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.store.filters import checked, fletcher32, shuffled_deflated


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


def word_by_word(data):
    sum1 = sum2 = 0
    data += b"\0" * (len(data) % 2)
    for i in range(0, len(data), 2):
        sum1 += data[i] << 8 | data[i + 1]
        sum2 += sum1

    def reduced(n):
        return n and (n % 65535 or 65535)

    return reduced(sum2) << 16 | reduced(sum1)


@given(data=st.binary(max_size=300) | st.integers(1, 9000).map(lambda n: np.random.default_rng(n).bytes(n)))
@settings(max_examples=100, deadline=None)
def test_the_matrix_product_is_the_sum_over_words(data):
    assert fletcher32(data) == word_by_word(data)


@pytest.mark.parametrize("data", [b"\0" * 5000, b"\xff" * 5000, b"\xff\xfe\0\1", b"\xff", b"\0", b"\1", b"\xff\xff"])
def test_sums_at_the_edges_of_the_modulus(data):
    assert fletcher32(data) == word_by_word(data)


@pytest.mark.parametrize("size", [1, 2, 7, 720, 721, 4096, 99_999])
def test_hdf5_agrees_and_finds_every_flipped_byte(size):
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        dataset = file.create_dataset("x", data.shape, "u1", chunks=data.shape, fletcher32=True)
        dataset.id.write_direct_chunk((0,), checked(data.tobytes()))
        np.testing.assert_array_equal(dataset[:], data)
        offset = dataset.id.get_chunk_info(0).byte_offset
    for position in np.random.default_rng(0).integers(0, size + 4, 50):
        content = bytearray(buffer.getvalue())
        content[offset + position] ^= 1 << int(position % 8)
        with (
            h5py.File(io.BytesIO(content), "r") as file,
            pytest.raises(OSError, match="filter returned failure|Fletcher32"),
        ):
            file["x"][:]
