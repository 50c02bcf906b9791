"""The products mimetic weights are made for."""

import pytest
import torch

from attnprobe.models.initialisers.mimetic import query_key, split, uniform_noise, value_output


def test_noise_has_variance_one_over_width():
    torch.manual_seed(0)
    z = uniform_noise(2, 100, 100)
    assert z.var().item() == pytest.approx(0.01, rel=0.03) and z.abs().max() <= 0.03**0.5


def test_query_key_is_the_best_approximation_of_its_rank():
    torch.manual_seed(0)
    z = uniform_noise(2, 24, 24).double()
    q, k = query_key(z, 8, 0.7, 0.5)
    assert q.shape == (2, 24, 8) and k.shape == (2, 8, 24)
    wanted = 0.7 * z + 0.5 * torch.eye(24)
    missing = torch.linalg.svdvals(wanted)[:, 8:].square().sum(-1).sqrt()  # Eckart and Young
    torch.testing.assert_close((q @ k - wanted).norm(dim=(1, 2)), missing)


def test_both_factors_weigh_the_same():
    left, right = split(torch.randn(3, 10, 10, dtype=torch.float64), 6)
    torch.testing.assert_close(left.mT @ left, right @ right.mT)


def test_exact_applies_the_wanted_matrix_to_tokens_and_repo_its_mirror():
    torch.manual_seed(0)
    z = uniform_noise(16, 16).double()
    wanted = 0.4 * z - 0.4 * torch.eye(16)
    value, output = value_output(z, "exact")
    torch.testing.assert_close(output @ value, wanted)
    value, output = value_output(z, "repo")
    torch.testing.assert_close(value @ output, wanted)
    applied = output @ value
    torch.testing.assert_close(applied.trace(), wanted.trace())
    assert (applied - wanted).norm() > 0.3 * wanted.norm()
