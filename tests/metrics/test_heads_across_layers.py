import math

import numpy as np
import torch

from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.metrics import (
    head_divergence,
    head_divergence_across_layers,
    head_similarity,
    head_similarity_across_layers,
    measure,
)
from tests.metrics import naive


def test_equal_loops_over_all_pairs_of_heads(soft):
    maps = soft(1, 2, 3, 4, 5)
    cosine, divergence = head_similarity_across_layers(maps), head_divergence_across_layers(maps)
    assert cosine.shape == divergence.shape == (1, 2, 3, 2, 3)
    for p, h, r, g in np.ndindex(2, 3, 2, 3):
        a, b = maps[0, p, h], maps[0, r, g]
        slow = naive.cosine(a.flatten().tolist(), b.flatten().tolist())
        np.testing.assert_allclose(cosine[0, p, h, r, g], slow, atol=1e-12)
        slow = naive.mean(map(naive.jensen_shannon, a.tolist(), b.tolist()))
        np.testing.assert_allclose(divergence[0, p, h, r, g], slow, atol=1e-12)


def test_the_blocks_on_the_diagonal_are_those_of_each_layer(soft):
    maps = soft(2, 3, 2, 5, 5)
    for across, within in (
        (head_similarity_across_layers, head_similarity),
        (head_divergence_across_layers, head_divergence),
    ):
        blocks = torch.stack([across(maps)[:, layer, :, layer] for layer in range(3)], 1)
        torch.testing.assert_close(blocks, within(maps))


def test_heads_that_come_back_in_another_layer_are_one_group():
    values = torch.zeros(3, 2, 2, 7, 7)
    for (layer, head), key in {(0, 0): 1, (0, 1): 2, (1, 0): 3, (1, 1): 1}.items():
        values[:, layer, head, :, key] = 1
    maps = AttentionMaps(values, ("a", "b", "c"), TokenGrid(2, 3))
    result = measure([maps], [head_similarity_across_layers, head_divergence_across_layers])
    for m in result.values():
        assert m.summary["clusters"] == [[[1, 1], [2, 2]], [[1, 2]], [[2, 1]]]
        assert (m.summary["effective_heads"], m.summary["redundant"], m.summary["of"]) == (3, 1, 4)
        assert m.summary["effective_heads_ci"] == [3, 3]


def test_the_divergence_is_bounded_and_unknown_distances_give_no_summary(soft):
    values = soft(2, 2, 2, 7, 7, spread=30.0).clone()
    assert (head_divergence_across_layers(values) <= math.log(2) + 1e-12).all()
    values[:, 0, 0] = math.nan
    m = measure([AttentionMaps(values, ("a", "b"), TokenGrid(2, 3))], [head_similarity_across_layers])
    assert m["head_similarity_across_layers"].summary == {}
