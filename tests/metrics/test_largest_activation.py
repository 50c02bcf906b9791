import numpy as np
import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.metrics import largest_activation


def tokens(seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 3, 30, 16)))


def test_one_entry_is_seen_where_it_is_and_nowhere_else():
    x = tokens()
    x[1, 2, 0, 4] = 500  # of the class token
    found = largest_activation(x)
    assert found[1, 2] == pytest.approx(500 / x[1, 2].abs().flatten().quantile(0.5).item())
    found[1, 2] = 0
    assert (found < 10).all()


def test_a_channel_of_all_tokens_and_a_long_token_are_told_apart():
    channel, token = tokens(), tokens()
    channel[..., 5] *= 100
    token[:, :, 3] *= 100
    assert (largest_activation(channel, of="channel") > 50).all() and (
        largest_activation(channel, of="token") < 4
    ).all()
    assert (largest_activation(token, of="token") > 50).all()
    for of, dim in (("channel", 1), ("token", 2)):
        norms = np.linalg.norm(tokens().numpy(), axis=dim + 1)
        expected = norms.max(-1) / np.median(norms, -1)
        np.testing.assert_allclose(largest_activation(tokens(), of=of), expected, rtol=1e-12)


def test_of_many_entries_a_part_is_enough_for_the_median():
    x = torch.from_numpy(np.random.default_rng(1).normal(size=(1, 1, 400, 100)))
    exact = x.abs().max() / x.abs().flatten().quantile(0.5)
    assert largest_activation(x).item() == pytest.approx(exact.item(), rel=0.05)


def test_an_unknown_part_is_refused():
    with pytest.raises(InputError, match="of"):
        largest_activation(tokens(), of="layer")
