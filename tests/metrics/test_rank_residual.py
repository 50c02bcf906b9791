import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.errors import InputError
from attnprobe.metrics import rank_residual, token_residual


def frobenius(matrix):
    return math.sqrt(sum(x * x for row in matrix for x in row))


def composite(matrix):
    rows = [sum(abs(x) for x in row) for row in matrix]
    cols = [sum(abs(row[j]) for row in matrix) for j in range(len(matrix[0]))]
    return math.sqrt(max(rows) * max(cols))


@pytest.mark.parametrize("norm", [frobenius, composite])
def test_equals_a_loop_over_entries(soft, signed, norm):
    for maps in (soft(2, 2, 2, 4, 5), signed(2, 2, 2, 4, 4)):
        fast = rank_residual(maps, norm=norm.__name__)
        for i, layer, h in itertools.product(range(2), range(2), range(2)):
            a = maps[i, layer, h].tolist()
            x = [sum(row[j] for row in a) / len(a) for j in range(len(a[0]))]
            rest = [[row[j] - x[j] for j in range(len(x))] for row in a]
            np.testing.assert_allclose(fast[i, layer, h], norm(rest) / norm(a), atol=1e-12)


def test_zero_where_every_query_attends_alike(soft):
    for norm in ("frobenius", "composite"):
        equal_rows = soft(1, 2, 2, 1, 6).expand(-1, -1, -1, 6, -1)
        assert rank_residual(equal_rows, norm=norm).max() < 1e-15
        assert rank_residual(torch.full((1, 1, 1, 197, 197), 1 / 197), norm=norm).max() < 1e-6


def test_the_identity_has_the_closed_form():
    n = 8
    value = rank_residual(torch.eye(n).double()[None, None, None]).item()
    assert value == pytest.approx(math.sqrt((n - 1) / n))


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16))
def test_in_range_and_no_other_row_is_nearer(seed):
    rng = np.random.default_rng(seed)
    a = torch.from_numpy(rng.normal(size=(1, 1, 1, 5, 6))).softmax(-1)
    other = torch.from_numpy(rng.dirichlet(np.ones(6)))
    r = rank_residual(a).item()
    assert 0 <= r <= 1
    assert r <= torch.linalg.vector_norm(a - other) / torch.linalg.vector_norm(a)


def test_a_zero_map_has_no_residual_and_an_unknown_norm_is_refused():
    assert rank_residual(torch.zeros(1, 1, 1, 3, 3)).isnan().all()
    with pytest.raises(InputError, match="norm='l2' is not a choice"):
        rank_residual(torch.eye(3)[None, None, None], norm="l2")


@pytest.mark.parametrize(("norm", "size"), [("frobenius", frobenius), ("composite", composite)])
def test_of_tokens_it_equals_loops(signed, norm, size):
    tokens = signed(2, 3, 4, 5)
    fast = token_residual(tokens, norm=norm)
    for i, layer in np.ndindex(2, 3):
        matrix = tokens[i, layer].tolist()
        mean = [sum(row[c] for row in matrix) / 4 for c in range(5)]
        rest = [[x - m for x, m in zip(row, mean, strict=True)] for row in matrix]
        np.testing.assert_allclose(fast[i, layer], size(rest) / size(matrix))


def test_the_mean_minimises_the_frobenius_norm(signed):
    tokens, shift = signed(1, 1, 6, 3), 0.1 * signed(20, 1, 3, seed=1)
    best = token_residual(tokens).item() * frobenius(tokens[0, 0].tolist())
    for vector in shift:
        other = tokens[0, 0] - tokens[0, 0].mean(0) - vector
        assert frobenius(other.tolist()) >= best


def test_equal_tokens_are_zero_and_the_map_version_agrees(signed):
    assert token_residual(signed(1, 2, 1, 4).expand(-1, -1, 5, -1)).abs().max() < 1e-12
    maps = signed(2, 3, 1, 5, 5)
    for norm in ("frobenius", "composite"):
        torch.testing.assert_close(token_residual(maps[:, :, 0], norm=norm), rank_residual(maps, norm=norm)[..., 0])
    with pytest.raises(InputError, match="norm='nuclear'"):
        token_residual(signed(1, 1, 2, 2), norm="nuclear")
