import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.view.packing import largest_error, pack, unpack


@given(seed=st.integers(0, 2**16), spread=st.floats(0.1, 8), signed=st.booleans(), scale=st.floats(1e-20, 1e20))
@settings(max_examples=40, deadline=None)
def test_no_weight_is_off_by_more_than_is_said(seed, spread, signed, scale):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((2, 3, 50)) if signed else np.exp(spread * rng.standard_normal((2, 3, 50)))
    values = (scale * values / abs(values).max()).astype(np.float32)
    largest = np.abs(values).max(-1, keepdims=True)
    off = np.abs(unpack(*pack(values, signed), signed) - values)
    assert (off <= largest_error(signed) * largest * 1.01).all()  # the largest is rounded up by at most 1/128 of itself


def test_small_weights_are_off_by_less():
    values = np.array([[1.0, 0.01, 0.0001]], np.float32)
    off = np.abs(unpack(*pack(values, False), False) - values)[0]
    assert off[1] < 0.0005 and off[2] < 0.00005


def test_the_largest_of_a_bfloat16_row_and_zeros_come_back_exactly():
    values = np.array([[0.5, 0.0, 0.25], [0.0, 0.0, 0.0]], np.float32)
    came = unpack(*pack(values, False), False)
    assert came[0, 0] == 0.5 and (came[:, 1] == 0).all() and (came[1] == 0).all()


@pytest.mark.parametrize("signed", [False, True])
def test_what_is_no_number_stays_none_and_spoils_nothing(signed):
    values = np.array([[0.5, np.nan, np.inf, 0.25]], np.float32)
    came = unpack(*pack(values, signed), signed)[0]
    assert np.isnan(came[1:3]).all() and came[0] == 0.5 and abs(came[3] - 0.25) < 0.005


def test_signs_are_kept():
    values = np.array([[-1.0, 0.5, -0.1, 0.0]], np.float32)
    assert (np.sign(unpack(*pack(values, True), True)) == np.sign(values)).all()
