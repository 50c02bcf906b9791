import itertools

import numpy as np
import torch

from attnprobe.metrics import head_confidence, row_top_mass
from tests.metrics import naive


def test_equals_a_loop_and_the_top_one_mass(soft):
    maps = soft(2, 3, 2, 4, 5)
    fast = head_confidence(maps)
    for i, layer, h in itertools.product(range(2), range(3), range(2)):
        np.testing.assert_allclose(fast[i, layer, h], naive.mean(max(row) for row in maps[i, layer, h].tolist()))
    torch.testing.assert_close(fast, row_top_mass(maps, k=1))


def test_uniform_attention_is_least_sure_and_one_hot_most():
    assert head_confidence(torch.full((1, 1, 1, 4, 8), 1 / 8)).item() == 1 / 8
    assert head_confidence(torch.eye(5)[None, None, None]).item() == 1
