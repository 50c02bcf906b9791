import itertools
import math

import numpy as np
import torch

from attnprobe.core.maps import TokenGrid
from attnprobe.metrics import own_column_mass, own_row_mass
from tests.metrics import naive

GRID = TokenGrid(2, 3)


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
    rows, columns = own_row_mass(maps, GRID), own_column_mass(maps, GRID)
    for at in itertools.product(range(2), range(2), range(3)):
        np.testing.assert_allclose(rows[at], by_loops(maps[at].tolist(), lambda i: i // 3))
        np.testing.assert_allclose(columns[at], by_loops(maps[at].tolist(), lambda i: i % 3))


def test_uniform_attention_and_a_head_that_looks_at_no_patch():
    uniform = torch.full((1, 1, 1, 7, 7), 1 / 7).double()
    np.testing.assert_allclose(own_row_mass(uniform, GRID).item(), 1 / 2)
    np.testing.assert_allclose(own_column_mass(uniform, GRID).item(), 1 / 3)
    blind = torch.zeros(1, 1, 1, 7, 7)
    blind[..., 0] = 1
    assert math.isnan(own_row_mass(blind, GRID).item())


def test_a_mirrored_picture_changes_nothing(soft):
    maps, mirror = soft(1, 2, 2, 7, 7), [0, 3, 2, 1, 6, 5, 4]
    for metric in (own_row_mass, own_column_mass):
        torch.testing.assert_close(metric(maps[..., mirror, :][..., mirror], GRID), metric(maps, GRID))
