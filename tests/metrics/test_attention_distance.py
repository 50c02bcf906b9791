import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.maps import TokenGrid
from attnprobe.metrics import attention_distance, own_column_mass, own_row_mass
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


GRID_OF_LINES = TokenGrid(2, 3)


def by_loops(matrix, line):
    shares = []
    for i, row in enumerate(matrix[1:]):
        own = sum(w for j, w in enumerate(row[1:]) if line(i) == line(j))
        if sum(row[1:]) > 0:
            shares.append(own / sum(row[1:]))
    return naive.mean(shares)


def test_equal_loops_over_patches(soft):
    maps = soft(2, 2, 3, 7, 7).clone()
    maps[0, 1, 2, 4, 1:] = 0  # attends to no patch
    rows, columns = own_row_mass(maps, GRID_OF_LINES), own_column_mass(maps, GRID_OF_LINES)
    for at in itertools.product(range(2), range(2), range(3)):
        np.testing.assert_allclose(rows[at], by_loops(maps[at].tolist(), lambda i: i // 3))
        np.testing.assert_allclose(columns[at], by_loops(maps[at].tolist(), lambda i: i % 3))


def test_uniform_attention_and_a_head_that_looks_at_no_patch():
    uniform = torch.full((1, 1, 1, 7, 7), 1 / 7).double()
    np.testing.assert_allclose(own_row_mass(uniform, GRID_OF_LINES).item(), 1 / 2)
    np.testing.assert_allclose(own_column_mass(uniform, GRID_OF_LINES).item(), 1 / 3)
    blind = torch.zeros(1, 1, 1, 7, 7)
    blind[..., 0] = 1
    assert math.isnan(own_row_mass(blind, GRID_OF_LINES).item())


def test_a_mirrored_picture_changes_nothing(soft):
    maps, mirror = soft(1, 2, 2, 7, 7), [0, 3, 2, 1, 6, 5, 4]
    for metric in (own_row_mass, own_column_mass):
        torch.testing.assert_close(
            metric(maps[..., mirror, :][..., mirror], GRID_OF_LINES), metric(maps, GRID_OF_LINES)
        )
