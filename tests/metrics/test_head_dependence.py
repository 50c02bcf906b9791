import itertools

import numpy as np
import torch

from attnprobe.metrics import head_dependence, measure
from tests.metrics.test_cka import as_maps, hsic1, linear_cka


def test_equals_loops_over_pairs_of_heads(soft):
    maps = soft(4, 2, 3, 6, 6)
    m = measure([as_maps(maps)], [head_dependence])["head_dependence"]
    biased = measure([as_maps(maps[:1])], [head_dependence.with_settings(estimator="biased")])["head_dependence"]
    for layer in range(2):
        mean = np.zeros((3, 3))
        for h, g in itertools.product(range(3), repeat=2):
            mean[h, g] = np.mean([hsic1(x[layer, h].numpy(), x[layer, g].numpy()) for x in maps])
            one = linear_cka(maps[0, layer, h].numpy(), maps[0, layer, g].numpy())
            np.testing.assert_allclose(biased.mean[layer, h, g], one, rtol=1e-9)
        np.testing.assert_allclose(m.mean[layer], mean / np.sqrt(np.outer(np.diag(mean), np.diag(mean))), rtol=1e-8)


def test_heads_that_swap_keys_depend_fully_and_independent_heads_do_not(soft):
    maps = soft(200, 1, 2, 8, 8)
    maps[:, :, 1] = maps[:, :, 0].flip(-1)
    swapped = measure([as_maps(maps)], [head_dependence])["head_dependence"].mean[0, 0, 1]
    apart = measure([as_maps(soft(200, 1, 2, 8, 8))], [head_dependence])["head_dependence"].mean[0, 0, 1]
    np.testing.assert_allclose(swapped, 1, atol=1e-9)
    assert abs(apart) < 0.05


def test_permuted_with_the_heads(soft):
    maps, order = soft(2, 2, 4, 6, 6), torch.tensor([2, 0, 3, 1])
    torch.testing.assert_close(head_dependence(maps[:, :, order]), head_dependence(maps)[:, :, order][..., order])
