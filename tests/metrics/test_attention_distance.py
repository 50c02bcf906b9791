import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.maps import TokenGrid
from attnprobe.metrics import attention_distance
from tests.metrics import naive

GRID = TokenGrid(2, 3, ("cls", "reg0"), patch=(4, 10))


def test_equals_loops_over_patches_of_a_grid_that_is_not_square(soft):
    maps = soft(2, 2, 2, 8, 8)
    fast = attention_distance(maps, GRID)
    place = {2 + 3 * row + col: (4 * row, 10 * col) for row in range(2) for col in range(3)}
    for i, layer, h in itertools.product(range(2), range(2), range(2)):
        a = maps[i, layer, h].tolist()
        slow = naive.mean(
            sum(a[q][k] * math.dist(place[q], place[k]) for k in place) / sum(a[q][k] for k in place) for q in place
        )
        np.testing.assert_allclose(fast[i, layer, h], slow, rtol=1e-12)


def test_a_patch_that_looks_at_itself_looks_nowhere_else():
    assert attention_distance(torch.eye(8)[None, None, None], GRID).item() == 0


def test_looking_one_patch_to_the_right_is_one_patch_width():
    maps = torch.zeros(1, 1, 1, 3, 3)
    maps[..., 0, 1] = maps[..., 1, 2] = maps[..., 2, 1] = 1
    assert attention_distance(maps, TokenGrid(1, 3, (), patch=(4, 10))).item() == pytest.approx(10)
    assert attention_distance(maps, TokenGrid(3, 1, (), patch=(4, 10))).item() == pytest.approx(4)


def test_attention_to_the_class_token_does_not_count():
    maps = torch.eye(8).double()[None, None, None].clone()
    maps[..., 2, :] = torch.tensor([0.5, 0.25, 0, 0.25, 0, 0, 0, 0])  # a quarter on the patch to the right
    maps[..., 3, :] = torch.tensor([1.0, 0, 0, 0, 0, 0, 0, 0])  # nothing on patches: this query is left out
    assert attention_distance(maps, GRID).item() == pytest.approx(10 / 5)


def test_a_head_that_ignores_all_patches_has_no_distance():
    maps = torch.zeros(1, 1, 1, 8, 8)
    maps[..., 0] = 1
    assert attention_distance(maps, GRID).isnan().all()


def test_what_is_not_a_number_is_not_hidden(soft):
    maps = soft(1, 2, 1, 8, 8).clone()
    maps[0, 1, 0, 5, 5] = math.nan
    assert attention_distance(maps, GRID).isnan().flatten().tolist() == [False, True]


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), spread=st.floats(0, 20))
def test_between_zero_and_the_diagonal_and_the_same_in_a_mirror(seed, spread):
    grid = TokenGrid(2, 3, (), patch=(4, 10))
    maps = torch.from_numpy(spread * np.random.default_rng(seed).normal(size=(1, 2, 2, 6, 6))).softmax(-1)
    distance = attention_distance(maps, grid)
    assert (distance >= 0).all() and (distance <= math.hypot(4, 20)).all()
    torch.testing.assert_close(distance, attention_distance(maps.flip(3, 4), grid))
