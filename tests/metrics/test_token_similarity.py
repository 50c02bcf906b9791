import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.metrics import token_layer_similarity, token_similarity
from tests.metrics import naive


def test_equals_a_loop_over_pairs(signed):
    tokens = signed(2, 3, 5, 4)
    tokens[1, 2, 3] = 0
    fast = token_similarity(tokens)
    for i, layer in itertools.product(range(2), range(3)):
        x = tokens[i, layer].tolist()
        slow = naive.mean(naive.cosine(x[a], x[b]) for a in range(5) for b in range(5) if a != b)
        np.testing.assert_allclose(fast[i, layer], slow, atol=1e-12)


def test_one_for_tokens_that_point_the_same_way_and_zero_for_orthogonal_ones(signed):
    same = signed(1, 1, 1, 8) * torch.tensor([1.0, 2.0, 0.5]).view(1, 1, 3, 1)
    assert token_similarity(same).item() == pytest.approx(1)
    assert token_similarity(torch.eye(6)[None, None]).item() == pytest.approx(0, abs=1e-7)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(2, 7))
def test_in_range_and_blind_to_the_order_and_length_of_tokens(seed, n):
    rng = np.random.default_rng(seed)
    tokens = torch.from_numpy(rng.normal(size=(2, 2, n, 3)))
    s = token_similarity(tokens)
    assert (s >= -1 / (n - 1) - 1e-12).all() and (s <= 1 + 1e-12).all()
    lengths = torch.from_numpy(rng.uniform(0.1, 10, size=(2, 2, n, 1)))
    torch.testing.assert_close(s, token_similarity(tokens.flip(-2) * lengths))


def test_equals_loops_over_tokens(signed):
    tokens = signed(2, 3, 4, 5)
    tokens[0, 1, 2] = 0
    fast = token_layer_similarity(tokens)
    for i, p, r in np.ndindex(2, 3, 3):
        slow = naive.mean(map(naive.cosine, tokens[i, p].tolist(), tokens[i, r].tolist()))
        np.testing.assert_allclose(fast[i, p, r], slow, atol=1e-12)


def test_scale_does_not_matter_and_sign_does(signed):
    tokens = signed(2, 1, 4, 5)
    similarity = token_layer_similarity(torch.cat([tokens, 7 * tokens, -tokens], 1))
    torch.testing.assert_close(similarity[0], torch.tensor([[1, 1, -1], [1, 1, -1], [-1, -1, 1]]).double())
