import itertools

import numpy as np
import torch

from attnprobe.core.maps import TokenGrid
from attnprobe.metrics import measure, prefix_mass
from tests.metrics import naive

GRID = TokenGrid(2, 2, ("cls", "reg0"))


def test_equals_a_loop_over_queries(soft):
    maps = soft(2, 2, 2, 6, 6)
    fast = prefix_mass(maps, GRID)
    for i, layer, h, t in itertools.product(range(2), range(2), range(2), range(2)):
        slow = naive.mean(row[t] for row in maps[i, layer, h].tolist())
        np.testing.assert_allclose(fast[i, layer, h, t], slow, atol=1e-12)


def test_uniform_attention_gives_each_token_its_share():
    torch.testing.assert_close(prefix_mass(torch.full((1, 1, 1, 6, 6), 1 / 6), GRID), torch.full((1, 1, 1, 2), 1 / 6))


def test_the_axis_carries_the_names_of_the_tokens(make_maps):
    m = measure([make_maps(prefix=("cls", "reg0"))])["prefix_mass"]
    assert m.coords == {"prefix": ["cls", "reg0"]} and m.mean.shape == (3, 2, 2)


def test_skipped_where_there_is_no_prefix(make_maps):
    assert "prefix_mass" not in measure([make_maps(prefix=())])
