import io

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.store.fletcher import checked, fletcher32


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
        with h5py.File(io.BytesIO(content), "r") as file, pytest.raises(OSError, match="filter returned failure"):
            file["x"][:]
