"""The vectorised chaos game against one point after the other in a loop."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.data.chaos_game import MARGIN, STEPS, WARM_UP, density, n_walkers, render, uniform, visit

HALVES = [[0.5, 0, 0, 0.5, 0, 0], [0.5, 0, 0, 0.5, 0.5, 0], [0.5, 0, 0, 0.5, 0.25, 0.5]]
"""Sierpinski's triangle with corners (0, 0), (1, 0), (0.5, 1)."""


def triangle(n_images=1):
    return torch.tensor([HALVES] * n_images), torch.full((n_images, 3), 1 / 3)


def test_density_counts_the_visits_of_a_walk_written_as_a_loop():
    maps = torch.tensor([[[0.5, 0.1, -0.2, 0.6, 0.3, -0.1], [0.4, -0.3, 0.3, 0.5, -0.2, 0.4]]])
    shares = torch.tensor([[0.6, 0.4]])
    rows, cols = 9, 12
    one = np.float32(1)
    a, b, c, d, e, f = maps[0, 0].numpy()
    determinant = (one - a) * (one - d) - b * c
    points = []
    for walker in range(14):
        x, y = ((one - d) * e + b * f) / determinant, ((one - a) * f + c * e) / determinant
        for step in range(WARM_UP + STEPS):
            k = int(np.float32(uniform(step, walker)[0]) >= np.float32(0.6))
            a_k, b_k, c_k, d_k, e_k, f_k = maps[0, k].numpy()
            x, y = a_k * x + b_k * y + e_k, c_k * x + d_k * y + f_k
            if step >= WARM_UP:
                points.append((x, y, k))
    xs, ys = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    scale = min(cols / (xs.max() - xs.min()), rows / (ys.max() - ys.min())) * (1 - 2 * MARGIN)
    expected = np.zeros((2, rows, cols), dtype=int)
    for x, y, k in points:
        col = (x - (xs.min() + xs.max()) / 2) * scale + cols / 2
        row = (y - (ys.min() + ys.max()) / 2) * scale + rows / 2
        expected[k, int(row), int(col)] += 1
    assert np.array_equal(density(maps, shares, (rows, cols))[0].numpy(), expected)


def test_points_stay_on_the_attractor():
    x, y, _ = visit(*triangle(), 500)
    assert (y >= 0).all() and (y <= 2 * x).all() and (y <= 2 * (1 - x)).all()
    in_middle_hole = (y < 0.499) & (y > 2 * (x - 0.5).abs() + 0.001)
    assert not in_middle_hole.any()


def test_maps_are_used_as_often_as_their_share():
    maps, _ = triangle()
    _, _, chosen = visit(maps, torch.tensor([[0.7, 0.0, 0.3]]), 1000)
    counted = torch.bincount(chosen.flatten(), minlength=3) / chosen.numel()
    assert counted[1] == 0
    torch.testing.assert_close(counted, torch.tensor([0.7, 0.0, 0.3]), atol=0.01, rtol=0)


@given(seed=st.integers(0, 2**16), rows=st.integers(4, 30), cols=st.integers(4, 30))
@settings(max_examples=15, deadline=None)
def test_a_picture_lies_between_0_and_1_inside_its_margin(seed, rows, cols):
    numbers = torch.from_numpy(uniform(seed, np.arange(3 + 3 + 9))).float()
    maps, shares = triangle()
    maps[:, :, 4] += numbers[:3]
    palette = numbers[6:].view(1, 3, 3)
    picture = render(maps, shares, torch.tensor([[1.0, 0, 0, 1]]), palette, (rows, cols))
    assert picture.shape == (1, 3, rows, cols)
    assert picture.min() >= 0 and picture.max() <= palette.max() + 1e-6
    counts = density(maps, shares, (rows, cols))
    assert counts.sum() == STEPS * n_walkers((rows, cols)) >= 6 * rows * cols
    assert torch.equal(picture.sum(1) == 0, counts.sum(1) == 0)


def test_uniform_numbers_are_uniform_and_change_with_every_coordinate():
    numbers = uniform(np.arange(200)[:, None], np.arange(200)[None])
    assert numbers.min() >= 0 and numbers.max() < 1
    assert len(np.unique(numbers)) == numbers.size
    histogram = np.histogram(numbers, bins=20, range=(0, 1))[0]
    assert abs(histogram / numbers.size * 20 - 1).max() < 0.1
    assert abs(np.corrcoef(numbers[:, :-1].ravel(), numbers[:, 1:].ravel())[0, 1]) < 0.02
    assert abs(np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]) < 0.02


def test_uniform_numbers_are_splitmix64_in_plain_integers():
    def mix(*coordinates):
        state = 0
        for coordinate in coordinates:
            state = (state + coordinate + 0x9E3779B97F4A7C15) % 2**64
            state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            state = (state ^ (state >> 27)) * 0x94D049BB133111EB % 2**64
            state ^= state >> 31
        return (state >> 11) / 2**53

    for coordinates in [(0,), (1, 2), (2**63, 5, 2**40)]:
        assert uniform(*coordinates)[0] == mix(*coordinates)
