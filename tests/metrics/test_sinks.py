import itertools
import math

import numpy as np
import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.core.maps import TokenGrid
from attnprobe.metrics import measure, prefix_mass, sink_mass, sink_rate
from tests.metrics import naive

GRID = TokenGrid(1, 3, prefix=("cls", "reg0"))


def received(matrix):
    """How much each key gets, mean over queries."""
    return [naive.mean(row[k] for row in matrix.tolist()) for k in range(matrix.shape[1])]


def test_equal_loops(soft):
    maps = soft(3, 2, 4, 5, 5, spread=3.0)
    mass = sink_mass(maps)
    rates = {token: sink_rate(maps, GRID, threshold=0.25, token=token) for token in ("first", "prefix", "any")}
    for i, layer in itertools.product(range(3), range(2)):
        heads = [received(maps[i, layer, h]) for h in range(4)]
        np.testing.assert_allclose(mass[i, layer], [max(head) for head in heads])
        of = {"first": lambda a: a[0], "prefix": lambda a: a[0] + a[1], "any": max}
        for token, rate in rates.items():
            expected = naive.mean(of[token](head) > 0.25 for head in heads)
            np.testing.assert_allclose(rate[i, layer], expected)


def test_a_head_on_the_class_token_is_a_sink_and_uniform_attention_is_none():
    maps = torch.full((1, 1, 2, 5, 5), 0.2)
    maps[0, 0, 1] = torch.tensor([0.9, 0.1, 0, 0, 0])
    np.testing.assert_allclose(sink_mass(maps)[0, 0], [0.2, 0.9], rtol=1e-6)
    assert sink_rate(maps, GRID).item() == 0.5
    assert (sink_mass(maps) >= prefix_mass(maps, GRID).amax(-1) - 1e-7).all()


def test_bad_settings_are_refused_and_nan_is_not_hidden(soft):
    with pytest.raises(InputError, match="threshold=1.5"):
        sink_rate(soft(1, 1, 1, 5, 5), GRID, threshold=1.5)
    with pytest.raises(InputError, match="Did you mean 'first'"):
        sink_rate(soft(1, 1, 1, 5, 5), GRID, token="frist")
    maps = soft(1, 2, 2, 5, 5).clone()
    maps[0, 1, 0, 2, 0] = math.nan
    assert sink_rate(maps, GRID).isnan().tolist() == [[False, True]]


GRID_OF_PREFIX = TokenGrid(2, 2, ("cls", "reg0"))


def test_equals_a_loop_over_queries(soft):
    maps = soft(2, 2, 2, 6, 6)
    fast = prefix_mass(maps, GRID_OF_PREFIX)
    for i, layer, h, t in itertools.product(range(2), range(2), range(2), range(2)):
        slow = naive.mean(row[t] for row in maps[i, layer, h].tolist())
        np.testing.assert_allclose(fast[i, layer, h, t], slow, atol=1e-12)


def test_uniform_attention_gives_each_token_its_share():
    torch.testing.assert_close(
        prefix_mass(torch.full((1, 1, 1, 6, 6), 1 / 6), GRID_OF_PREFIX), torch.full((1, 1, 1, 2), 1 / 6)
    )


def test_the_axis_carries_the_names_of_the_tokens(make_maps):
    m = measure([make_maps(prefix=("cls", "reg0"))])["prefix_mass"]
    assert m.coords == {"prefix": ["cls", "reg0"]} and m.mean.shape == (3, 2, 2)


def test_skipped_where_there_is_no_prefix(make_maps):
    assert "prefix_mass" not in measure([make_maps(prefix=())])
