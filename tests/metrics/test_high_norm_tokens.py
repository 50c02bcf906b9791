import math
import statistics

import numpy as np
import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.core.maps import TokenGrid
from attnprobe.metrics import high_norm_tokens, largest_token_norm

GRID = TokenGrid(1, 5)


@pytest.mark.parametrize("n", [5, 6])
def test_equal_loops(signed, n):
    grid = TokenGrid(1, n)
    tokens = signed(3, 2, n + 1, 4) ** 3
    share, largest = high_norm_tokens(tokens, grid, factor=1.5), largest_token_norm(tokens, grid)
    for i in range(3):
        for layer in range(2):
            norms = [math.sqrt(sum(x * x for x in token)) for token in tokens[i, layer, 1:].tolist()]
            middle = statistics.median(norms)
            np.testing.assert_allclose(share[i, layer], sum(x > 1.5 * middle for x in norms) / len(norms))
            np.testing.assert_allclose(largest[i, layer], max(norms) / middle)


def test_one_long_patch_is_found_and_a_long_class_token_is_not():
    tokens = torch.ones(1, 2, 6, 4)
    tokens[0, 0, 0] *= 50
    tokens[0, 1, 3] *= 10
    np.testing.assert_allclose(high_norm_tokens(tokens, GRID), [[0, 0.2]], rtol=1e-6)
    np.testing.assert_allclose(largest_token_norm(tokens, GRID), [[1, 10]], rtol=1e-6)
    torch.testing.assert_close(high_norm_tokens(7 * tokens, GRID), high_norm_tokens(tokens, GRID))


def test_a_factor_of_one_is_refused_and_nan_is_not_hidden():
    with pytest.raises(InputError, match="factor=1 must be above 1"):
        high_norm_tokens(torch.ones(1, 1, 6, 2), GRID, factor=1)
    tokens = torch.ones(1, 1, 6, 2)
    tokens[0, 0, 4, 0] = math.nan
    assert high_norm_tokens(tokens, GRID).isnan().all()
