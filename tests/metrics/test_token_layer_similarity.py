import numpy as np
import torch

from attnprobe.metrics import token_layer_similarity
from tests.metrics import naive


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
