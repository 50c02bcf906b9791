"""Products of rows equal plain ones, and vectors have length 1; what they mean is tested with the metrics."""

import numpy as np
import pytest
import torch

from attnprobe.core.sharing import sharing
from attnprobe.metrics import nuclear_ratio, spectral_gap, stable_rank
from attnprobe.metrics.engine.linear_algebra import (
    half_products,
    row_products,
    singular_values,
    unit_vectors,
)


@pytest.mark.parametrize("rows", [3, 32, 41])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_the_product_with_the_transpose(signed, rows, dtype):
    x = signed(2, 3, rows, 7).to(dtype)
    whole = torch.einsum("abik,abjk->abij", x, x)
    torch.testing.assert_close(row_products(x), whole)
    below, diagonal = half_products(x)
    torch.testing.assert_close(below + below.mT + torch.diag_embed(diagonal), whole)
    assert (below.triu() == 0).all()
    torch.testing.assert_close(row_products(x.mT.contiguous().mT), whole)


def test_products_that_somebody_differentiates_or_keeps_memory_for_are_the_same(signed):
    x = signed(1, 40, 9)
    memory = x.new_empty(1, 40, 40)
    assert row_products(x, out=memory).data_ptr() == memory.data_ptr()
    torch.testing.assert_close(memory, row_products(x.clone().requires_grad_()).detach())
    row_products(x.requires_grad_()).sum().backward()
    assert x.grad.isfinite().all()


def test_what_is_not_finite_stays_in_its_row(signed):
    x = signed(2, 40, 9)
    x[1, 5, 3] = float("nan")
    products = row_products(x)
    assert products[0].isfinite().all() and products[1].isnan().sum() == 79


@pytest.mark.parametrize("center", ["none", "mean", "uniform"])
def test_columns_so_faint_that_their_squares_lose_digits_are_no_longer_than_1(center):
    generator = torch.Generator().manual_seed(0)
    faint = torch.rand(2, 6, 40, generator=generator) * torch.logspace(-30, 0, 40)
    lengths = unit_vectors(faint, center=center).norm(dim=-2)
    one = (lengths - 1).abs() < 1e-5
    assert (one | (lengths == 0)).all() and one[..., -15:].all()


def test_within_a_measurement_singular_values_of_a_matrix_are_computed_once(monkeypatch):
    calls, svd = [], torch.linalg.svdvals
    monkeypatch.setattr(torch.linalg, "svdvals", lambda x: calls.append(x) or svd(x))
    maps = torch.rand(2, 3, 2, 5, 5).softmax(-1)
    ranks = (stable_rank, nuclear_ratio, spectral_gap)
    alone = [metric(maps) for metric in ranks]
    assert len(calls) == 3 * 3  # per layer
    calls.clear()
    with sharing():
        together = [metric(maps) for metric in ranks]
    assert len(calls) == 3
    for one, other in zip(alone, together, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    stable_rank(maps)
    assert len(calls) == 6  # nothing is kept afterwards


def test_another_matrix_at_the_same_place_in_memory_has_values_of_its_own():
    with sharing():
        found = [singular_values(torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(k))) for k in range(50)]
    for k, values in enumerate(found):
        matrix = torch.rand(4, 6, 6, generator=torch.Generator().manual_seed(k)).numpy()
        np.testing.assert_allclose(values, np.linalg.svd(matrix.astype(float), compute_uv=False), rtol=1e-9)
    stored = torch.rand(2, 4, 4)
    with sharing():
        whole, turned = singular_values(stored), singular_values(stored[:, :2])
    assert whole.shape == (2, 4) and turned.shape == (2, 2)
