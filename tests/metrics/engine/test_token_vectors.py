"""Lengths of what is compared; what they mean is tested with the metrics."""

import pytest
import torch

from attnprobe.metrics.engine.token_vectors import unit_vectors


@pytest.mark.parametrize("center", ["none", "mean", "uniform"])
def test_columns_so_faint_that_their_squares_lose_digits_are_no_longer_than_1(center):
    generator = torch.Generator().manual_seed(0)
    faint = torch.rand(2, 6, 40, generator=generator) * torch.logspace(-30, 0, 40)
    lengths = unit_vectors(faint, center=center).norm(dim=-2)
    one = (lengths - 1).abs() < 1e-5
    assert (one | (lengths == 0)).all() and one[..., -15:].all()
