import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.errors import InputError
from attnprobe.core.maps import TokenGrid
from attnprobe.metrics import attention_rollout
from attnprobe.metrics.rollout import rollout

GRID = TokenGrid(2, 2)


def paths(image, layer, token, residual):
    """{input token: weight}, path by path from the top, by recursion."""
    if layer < 0:
        return {token: 1.0}
    found = {}
    for key in range(image.shape[-1]):
        weight = (1 - residual) * sum(image[layer, h, token, key].item() for h in range(image.shape[1]))
        weight = weight / image.shape[1] + residual * (key == token)
        for end, below in paths(image, layer - 1, key, residual).items():
            found[end] = found.get(end, 0) + weight * below
    return found


@pytest.mark.parametrize("residual", [0.5, 0.0])
def test_is_the_sum_over_all_paths(soft, residual):
    maps = soft(2, 3, 2, 5, 5)
    rolled = rollout(maps, residual)
    for i, layer, token in np.ndindex(2, 3, 5):
        slow = paths(maps[i], layer, token, residual)
        np.testing.assert_allclose(rolled[i, layer, token], [slow[key] for key in range(5)], rtol=1e-10)
    torch.testing.assert_close(attention_rollout(maps, GRID, residual=residual), rolled[:, :, 0])
    bare, registers = TokenGrid(1, 5, prefix=()), TokenGrid(1, 4, prefix=("reg0",))
    for without in (bare, registers):
        torch.testing.assert_close(attention_rollout(maps, without, residual=residual), rolled.mean(2))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), layers=st.integers(1, 5))
def test_rows_stay_distributions_and_heads_have_no_order(seed, layers):
    maps = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, layers, 3, 5, 5))).softmax(-1)
    rolled = rollout(maps)
    torch.testing.assert_close(rolled.sum(-1), torch.ones(2, layers, 5).double())
    assert (rolled >= 0).all()
    torch.testing.assert_close(rolled, rollout(maps.flip(2)))


def test_closed_forms():
    identity = torch.eye(5).double().expand(1, 4, 2, 5, 5)
    torch.testing.assert_close(rollout(identity), identity[:, :, 0])
    uniform = torch.full((1, 3, 1, 5, 5), 0.2).double()
    kept = 0.5 ** torch.arange(1, 4).double()  # of each skip connection
    np.testing.assert_allclose(rollout(uniform)[0, :, 0, 0], kept + (1 - kept) / 5)


def test_bad_input_is_refused(soft):
    with pytest.raises(InputError, match="residual=1 must lie in"):
        rollout(soft(1, 1, 1, 3, 3), 1)
    with pytest.raises(InputError, match="1 queries and 3 keys"):
        rollout(soft(1, 1, 1, 1, 3))
