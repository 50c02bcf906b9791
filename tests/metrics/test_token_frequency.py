import cmath
import math

import numpy as np
import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.core.maps import TokenGrid
from attnprobe.metrics import high_frequency, high_frequency_share, token_residual


def transform(picture):
    """{(row frequency, column frequency): amplitude} by the double sum; frequencies in cycles per picture."""
    rows, cols = len(picture), len(picture[0])
    result = {}
    for u in range(rows):
        for v in range(cols):
            total = sum(
                picture[r][c] * cmath.exp(-2j * math.pi * (u * r / rows + v * c / cols))
                for r in range(rows)
                for c in range(cols)
            )
            result[u if u <= rows / 2 else u - rows, v if v <= cols / 2 else v - cols] = abs(total)
    return result


@pytest.mark.parametrize("grid", [TokenGrid(4, 6), TokenGrid(5, 3, prefix=())])
def test_equal_sums_over_the_picture(signed, grid):
    tokens = signed(2, 2, grid.n_tokens, 3)
    logs, shares = high_frequency(tokens, grid), high_frequency_share(tokens, grid, cutoff=0.5)
    highest = ((grid.rows - 1) // 2, (grid.cols - 1) // 2)
    for i, layer in np.ndindex(2, 2):
        patches = tokens[i, layer, grid.n_prefix :].unflatten(0, (grid.rows, grid.cols))
        channels = [transform(patches[..., c].tolist()) for c in range(3)]
        slow = sum(math.log(f[highest]) - math.log(f[0, 0]) for f in channels) / 3
        np.testing.assert_allclose(logs[i, layer], slow, rtol=1e-9)
        high = sum(a * a for f in channels for (u, v), a in f.items()
                   if max(abs(u) / grid.rows, abs(v) / grid.cols) > 0.25)  # fmt: skip
        total = sum(a * a for f in channels for a in f.values())
        np.testing.assert_allclose(shares[i, layer], high / total, rtol=1e-9)


def test_a_chessboard_is_all_high_a_constant_is_all_low_and_a_wave_is_where_it_should_be():
    grid = TokenGrid(4, 4, prefix=())
    row, col = torch.meshgrid(torch.arange(4), torch.arange(4), indexing="ij")
    pictures = torch.stack([(-1.0) ** (row + col), torch.ones(4, 4), torch.cos(math.pi / 2 * row)]).flatten(1)
    tokens = pictures[None, ..., None]
    np.testing.assert_allclose(high_frequency_share(tokens, grid), [[1, 0, 0]], atol=1e-6)
    np.testing.assert_allclose(high_frequency_share(tokens, grid, cutoff=0.4), [[1, 0, 1]], atol=1e-6)


def test_without_a_cutoff_it_is_the_square_of_the_residual(signed):
    tokens, grid = signed(2, 3, 12, 5), TokenGrid(3, 4, prefix=())
    torch.testing.assert_close(high_frequency_share(tokens, grid, cutoff=0), token_residual(tokens).square())


def test_scale_does_not_matter_and_bad_cutoffs_are_refused(signed):
    tokens, grid = signed(1, 2, 17, 5), TokenGrid(4, 4)
    torch.testing.assert_close(high_frequency(3 * tokens, grid), high_frequency(tokens, grid))
    with pytest.raises(InputError, match="cutoff=1 must lie in"):
        high_frequency_share(tokens, grid, cutoff=1)
