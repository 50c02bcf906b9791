import math

import numpy as np
import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.metrics import rank_residual, token_residual


def composite(matrix):
    columns = max(sum(abs(row[c]) for row in matrix) for c in range(len(matrix[0])))
    return math.sqrt(columns * max(sum(map(abs, row)) for row in matrix))


def frobenius(matrix):
    return math.sqrt(sum(x * x for row in matrix for x in row))


@pytest.mark.parametrize(("norm", "size"), [("frobenius", frobenius), ("composite", composite)])
def test_equals_loops(signed, norm, size):
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
