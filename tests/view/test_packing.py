import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.view.packing import largest_error, pack
from tests.view.arrays import unpack


def there_and_back(values, n_prefix=0, signed=False):
    values = np.asarray(values, np.float32)
    return unpack(*pack(values, n_prefix, signed), n_prefix, signed)


@given(
    seed=st.integers(0, 2**16),
    spread=st.floats(0.1, 8),
    signed=st.booleans(),
    scale=st.floats(1e-20, 1e20),
    n_prefix=st.sampled_from([0, 1, 5]),
)
@settings(max_examples=40, deadline=None)
def test_no_weight_is_off_by_more_than_is_said(seed, spread, signed, scale, n_prefix):
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((2, 3, 50)) if signed else np.exp(spread * rng.standard_normal((2, 3, 50)))
    values = (scale * values / abs(values).max()).astype(np.float32)
    off = np.abs(there_and_back(values, n_prefix, signed) - values)
    for part in (slice(0, n_prefix), slice(n_prefix, None)):
        largest = np.abs(values[..., part]).max(-1, keepdims=True, initial=0)
        bound = largest_error(signed) * largest * 1.01  # the largest is rounded up by at most 1/128 of itself
        assert (off[..., part] <= bound).all()


def test_small_weights_are_off_by_less():
    off = np.abs(there_and_back([[1.0, 0.01, 0.0001]]) - [[1.0, 0.01, 0.0001]])[0]
    assert off[1] < 0.0005 and off[2] < 0.00005


def test_a_class_token_that_takes_nearly_all_costs_patches_nothing():
    row = [0.96, 0.01, 0.02, 0.01 / 3]
    off = np.abs(there_and_back([row], n_prefix=1) - [row])[0]
    assert (off[1:] <= 1.01 * largest_error(False) * 0.02).all()


def test_the_largest_of_a_bfloat16_row_and_zeros_come_back_exactly():
    came = there_and_back([[0.5, 0.0, 0.25], [0.0, 0.0, 0.0]])
    assert came[0, 0] == 0.5 and (came[:, 1] == 0).all() and (came[1] == 0).all()


@pytest.mark.parametrize("signed", [False, True])
def test_what_is_no_number_stays_none_and_spoils_nothing(signed):
    came = there_and_back([[0.5, np.nan, np.inf, 0.25]], signed=signed)[0]
    assert np.isnan(came[1:3]).all() and came[0] == 0.5 and abs(came[3] - 0.25) < 0.005


def test_signs_are_kept():
    values = np.array([[-1.0, 0.5, -0.1, 0.0]], np.float32)
    assert (np.sign(there_and_back(values, signed=True)) == np.sign(values)).all()
