import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.errors import InputError
from attnprobe.metrics import effective_rank, nuclear_ratio, numerical_rank, spectral_gap, stable_rank

FAMILY = (numerical_rank, stable_rank, nuclear_ratio, spectral_gap)


def from_eigenvalues(matrix):
    """Singular values by another road: eigenvalues of A A^T, by NumPy."""
    return np.sqrt(np.maximum(np.linalg.eigvalsh(matrix @ matrix.T)[::-1], 0))


def test_equal_the_definitions_with_eigenvalues_of_the_gram_matrix(soft):
    maps = soft(2, 2, 3, 6, 6)
    fast = [metric(maps, **({"threshold": 0.05} if metric is numerical_rank else {})) for metric in FAMILY]
    for at in np.ndindex(2, 2, 3):
        s = from_eigenvalues(maps[at].numpy())
        slow = [(s > 0.05 * s[0]).sum(), (s**2).sum() / s[0] ** 2, s.sum() / s[0], 1 - s[1] / s[0]]
        np.testing.assert_allclose([value[at] for value in fast], slow, rtol=1e-7)


def test_closed_forms_of_one_pattern_and_of_a_permutation():
    one, many = torch.full((1, 1, 1, 6, 6), 1 / 6).double(), torch.eye(6).double()[None, None, None]
    values = [[metric(maps).item() for maps in (one, many)] for metric in FAMILY]
    np.testing.assert_allclose(values, [[1, 6], [1, 6], [1, 6], [1, 0]], atol=1e-9)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), rank=st.integers(1, 5))
def test_the_rank_of_a_product_is_found_and_the_family_is_ordered(seed, rank):
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(rng.normal(size=(1, 1, 1, 5, rank)) @ rng.normal(size=(1, 1, 1, rank, 5)))
    numerical, stable, nuclear = (f(maps).item() for f in (numerical_rank.with_settings(threshold=1e-9), *FAMILY[1:3]))
    assert numerical == rank
    assert 1 - 1e-9 <= stable <= nuclear + 1e-9 <= rank + 2e-9
    assert effective_rank(maps).item() <= rank + 1e-9
    turned = torch.from_numpy(np.linalg.qr(rng.normal(size=(5, 5)))[0]) @ maps
    for metric in FAMILY[1:]:
        torch.testing.assert_close(metric(turned), metric(maps))


def test_what_cannot_be_said_is_nan(soft):
    maps = soft(1, 1, 3, 4, 4).clone()
    maps[0, 0, 1] = 0
    maps[0, 0, 2, 1, 1] = math.inf
    for metric in FAMILY:
        value = metric(maps)[0, 0]
        assert value[0].isfinite() and value[2].isnan(), metric.name
        assert value[1].item() == 0 if metric is numerical_rank else value[1].isnan(), metric.name
    with pytest.raises(InputError, match="threshold=1 must lie in"):
        numerical_rank(maps, threshold=1)
