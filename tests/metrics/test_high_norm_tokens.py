import math
import statistics

import numpy as np
import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.core.maps import TokenGrid
from attnprobe.metrics import high_norm_tokens, largest_activation, largest_token_norm

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


def tokens(seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 3, 30, 16)))


def test_one_entry_is_seen_where_it_is_and_nowhere_else():
    x = tokens()
    x[1, 2, 0, 4] = 500  # of the class token
    found = largest_activation(x)
    assert found[1, 2] == pytest.approx(500 / x[1, 2].abs().flatten().quantile(0.5).item())
    found[1, 2] = 0
    assert (found < 10).all()


def test_a_channel_of_all_tokens_and_a_long_token_are_told_apart():
    channel, token = tokens(), tokens()
    channel[..., 5] *= 100
    token[:, :, 3] *= 100
    assert (largest_activation(channel, of="channel") > 50).all() and (
        largest_activation(channel, of="token") < 4
    ).all()
    assert (largest_activation(token, of="token") > 50).all()
    for of, dim in (("channel", 1), ("token", 2)):
        norms = np.linalg.norm(tokens().numpy(), axis=dim + 1)
        expected = norms.max(-1) / np.median(norms, -1)
        np.testing.assert_allclose(largest_activation(tokens(), of=of), expected, rtol=1e-12)


def test_of_many_entries_a_part_is_enough_for_the_median():
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 1, 400, 100)))
    exact = x.abs().max() / x.abs().flatten().quantile(0.5)
    assert largest_activation(x).item() == pytest.approx(exact.item(), rel=0.05)


def test_an_unknown_part_is_refused():
    with pytest.raises(InputError, match="of"):
        largest_activation(tokens(), of="layer")
