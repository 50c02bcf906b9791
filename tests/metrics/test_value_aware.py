import math

import numpy as np
import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.metrics import (
    head_output_norm,
    head_output_similarity,
    measure,
    own_value_similarity,
    prefix_mass,
    value_similarity,
    value_weighted_prefix_mass,
)
from tests.metrics import naive

GRID = TokenGrid(1, 3, prefix=("cls", "reg0"))


def size(vector):
    return math.sqrt(sum(x * x for x in vector))


def outputs(weights, values):
    """[query][width]: what each query receives."""
    return [[sum(w * v[p] for w, v in zip(row, values, strict=True)) for p in range(len(values[0]))] for row in weights]


def test_equal_loops(soft, signed):
    maps, values = soft(2, 2, 3, 5, 5), signed(2, 2, 3, 5, 4)
    own, alike = own_value_similarity(maps, values), value_similarity(values)
    outs = head_output_similarity(maps, values)
    norm, prefix = head_output_norm(maps, values), value_weighted_prefix_mass(maps, values, GRID)
    for i, layer in np.ndindex(2, 2):
        sizes = []
        for h in range(3):
            a, v = maps[i, layer, h].tolist(), values[i, layer, h].tolist()
            received = outputs(a, v)
            sizes.append(naive.mean(map(size, received)))
            np.testing.assert_allclose(own[i, layer, h], naive.mean(map(naive.cosine, received, v)))
            pairs = [naive.cosine(v[s], v[t]) for s in range(5) for t in range(5) if s != t]
            np.testing.assert_allclose(alike[i, layer, h], naive.mean(pairs))
            shares = [[a[q][t] * size(v[t]) / sum(a[q][k] * size(v[k]) for k in range(5)) for q in range(5)]
                      for t in range(2)]  # fmt: skip
            for g in range(3):
                other = outputs(maps[i, layer, g].tolist(), values[i, layer, g].tolist())
                flat = [[x for row in rows for x in row] for rows in (received, other)]
                np.testing.assert_allclose(outs[i, layer, h, g], naive.cosine(*flat))
            np.testing.assert_allclose(prefix[i, layer, h], [naive.mean(of_token) for of_token in shares])
        np.testing.assert_allclose(norm[i, layer], [x / naive.mean(sizes) for x in sizes])


def test_closed_forms(soft, signed):
    values = signed(1, 1, 2, 5, 4)
    identity = torch.eye(5).double().expand(1, 1, 2, 5, 5)
    torch.testing.assert_close(own_value_similarity(identity, values), torch.ones(1, 1, 2).double())
    same = signed(1, 1, 2, 1, 4).expand(-1, -1, -1, 5, -1)
    torch.testing.assert_close(value_similarity(same), torch.ones(1, 1, 2).double())
    maps = soft(1, 1, 2, 5, 5)
    torch.testing.assert_close(value_weighted_prefix_mass(maps, same, GRID), prefix_mass(maps, GRID))
    values[0, 0, 1] = 0  # a dead head
    np.testing.assert_allclose(head_output_norm(maps, values), [[[2, 0]]], atol=1e-12)


def test_a_sink_that_gives_nothing_has_no_weighted_mass(soft, signed):
    maps, values = soft(1, 1, 1, 5, 5), signed(1, 1, 1, 5, 4)
    values[..., 0, :] = 0
    assert value_weighted_prefix_mass(maps, values, GRID)[..., 0].max() == 0 < prefix_mass(maps, GRID)[..., 0].min()


def test_without_values_they_are_refused_in_words(soft):
    maps = AttentionMaps(soft(2, 2, 3, 5, 5), ("a", "b"), GRID)
    for metric in (own_value_similarity, value_similarity, head_output_norm, value_weighted_prefix_mass):
        with pytest.raises(InputError, match="the value vectors were not captured, only maps"):
            measure([maps], [metric])


def test_captured_values_are_measured_in_working_precision_and_stay_with_their_image(soft, signed):
    values = signed(5, 2, 3, 5, 4).to(torch.bfloat16)
    maps = AttentionMaps(soft(5, 2, 3, 5, 5).float(), tuple("abcde"), GRID, value_vectors=values)
    metrics = [own_value_similarity, value_similarity, head_output_norm, value_weighted_prefix_mass]
    result = measure([maps.images(0, 2), maps.images(2, 5)], metrics, bootstrap=10)
    for metric in metrics:
        given = {"maps": maps.values, "value_vectors": values.float(), "grid": GRID}
        direct = metric(**{name: given[name] for name in given if name in metric.parameters})
        np.testing.assert_allclose(result[metric.name].per_image, direct, rtol=1e-5, atol=1e-6)
        assert result[metric.name].baselines == {}
