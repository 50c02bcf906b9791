"""Compiled loops give the numbers of the plain ones, up to the stated rounding."""

import math

import numpy as np
import pytest
import torch

from attnprobe.metrics import head_divergence, map_overlap, row_entropy
from attnprobe.metrics.engine import compiled

pytest.importorskip("numba", reason="the extra [fast] is not installed")

RELATIVE = 3e-7
"""Largest relative error of the compiled logarithm, in units of float32 two to three roundings."""


def plain(monkeypatch, metric, maps, **settings):
    with monkeypatch.context() as patch:
        patch.setattr(compiled, "_module", lambda: None)
        return metric(maps, **settings)


def test_the_logarithm_is_within_its_stated_error():
    kernels = compiled.kernels(torch.zeros(1))
    x = np.exp(np.random.default_rng(0).uniform(-87, 5, 200_000)).astype(np.float32)
    x = np.concatenate([x, np.nextafter(np.float32(1), np.float32([0, 2])), np.float32([1, 0.5**0.5, 2**0.5])])
    found, exact = np.array([kernels.ln(value) for value in x[-2000:]]), np.log(x[-2000:].astype(np.float64))
    np.testing.assert_allclose(found, exact, rtol=RELATIVE, atol=1e-12)
    pairs = np.stack([x, x])[None]  # the mixture of a head with its equal is itself
    for start in range(0, len(x), 100_000):
        part, sums = pairs[:, :, start : start + 100_000], np.zeros((1, 2, 2))
        kernels.mixtures(part, sums)
        exact = part[0, 0].astype(np.float64) * np.log(part[0, 0].astype(np.float64))
        np.testing.assert_allclose(sums[0, 0, 1], exact.sum(), rtol=1e-5)


@pytest.mark.parametrize("n_tokens", [3, 17, 50])
@pytest.mark.parametrize("spread", [0.01, 1.0, 8.0])
def test_metrics_agree_with_and_without_them(monkeypatch, n_tokens, spread):
    generator = torch.Generator().manual_seed(n_tokens)
    maps = (spread * torch.randn(2, 4, 3, n_tokens, n_tokens, generator=generator)).softmax(-1)
    maps[0, 0, 0] = torch.eye(n_tokens)  # zeros
    for metric, atol in ((row_entropy, 2e-6), (head_divergence, 2e-6), (map_overlap, 2e-6)):
        torch.testing.assert_close(metric(maps), plain(monkeypatch, metric, maps), rtol=2e-6, atol=atol)
    for every in (1, 2):
        torch.testing.assert_close(
            map_overlap(maps, every=every), plain(monkeypatch, map_overlap, maps, every=every), rtol=2e-6, atol=2e-6
        )


def test_maps_that_are_not_contiguous_and_signed_ones_agree_too(monkeypatch):
    maps = torch.randn(2, 3, 4, 9, 9).mT[:, :, ::2]
    torch.testing.assert_close(map_overlap(maps), plain(monkeypatch, map_overlap, maps), rtol=2e-6, atol=2e-6)


def test_what_is_not_finite_is_not_hidden():
    maps = torch.randn(1, 3, 2, 6, 6).softmax(-1)
    maps[0, 1, 1, 2, 3] = math.nan
    assert row_entropy(maps).isnan().nonzero().tolist() == [[0, 1, 1]]
    assert head_divergence(maps)[0, 1].isnan().any() and head_divergence(maps)[0, [0, 2]].isfinite().all()
    assert map_overlap(maps)[0, 1].isnan().all() and map_overlap(maps)[0, 0, 2].isfinite()


def test_double_precision_never_runs_in_them():
    assert compiled.kernels(torch.zeros(1, dtype=torch.float64)) is None


def test_an_installation_that_cannot_be_imported_is_a_warning(monkeypatch):
    monkeypatch.setattr(compiled, "MODULE", "attnprobe.metrics.engine.no_such_module")
    compiled._module.cache_clear()
    try:
        with pytest.warns(UserWarning, match="numba is installed but cannot be used"):
            assert compiled.kernels(torch.zeros(1)) is None
    finally:
        compiled._module.cache_clear()
