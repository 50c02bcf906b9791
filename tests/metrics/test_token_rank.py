import numpy as np
import pytest
import torch

from attnprobe.metrics import token_rank


def test_it_counts_directions_of_equal_weight():
    """Unit tokens that come in pairs of opposite sign, r pairs along r axes: rank r."""
    for r in (1, 2, 5):
        axes = torch.eye(8)[:r]
        assert token_rank(torch.cat([axes, -axes])[None, None]).item() == pytest.approx(r, abs=1e-5)


def test_a_long_token_counts_like_any_other():
    x = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 1, 40, 16)))
    stretched = x.clone()
    stretched[0, 0, 3] *= 1000
    torch.testing.assert_close(token_rank(stretched), token_rank(x))


@pytest.mark.parametrize("shape", [(30, 8), (8, 30)])
def test_it_is_the_participation_ratio_of_squared_singular_values(shape):
    x = np.random.default_rng(1).normal(size=shape)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    s = np.linalg.svd(unit - unit.mean(0), compute_uv=False) ** 2
    assert token_rank(torch.from_numpy(x)[None, None]).item() == pytest.approx(s.sum() ** 2 / (s**2).sum(), abs=1e-10)


def test_equal_tokens_have_no_directions():
    equal = torch.full((1, 1, 6, 4), 0.3)
    assert token_rank(equal).item() == 0 and token_rank(equal[..., :1, :]).isnan()
    equal[0, 0, 2, 1] = torch.nan
    assert token_rank(equal).isnan()
