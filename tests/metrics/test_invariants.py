"""What holds for every metric, whatever it measures."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.metrics import METRICS

GRID = TokenGrid(2, 3, patch=(4, 8))
FEW = settings(max_examples=4, deadline=None)
SEEDS = st.integers(0, 2**16)
SKETCHED = ("content_overlap",)
"""Each head has random thresholds of its own, so that the errors of heads do not add up."""


def some_maps(seed, images=3, layers=2, heads=3):
    """Peaky softmax maps with block outputs and value vectors."""
    rng = np.random.default_rng(seed)
    n = GRID.n_tokens
    return AttentionMaps(
        torch.from_numpy(rng.uniform(0.1, 5) * rng.normal(size=(images, layers, heads, n, n))).softmax(-1),
        tuple(map(str, range(images))),
        GRID,
        tokens=torch.from_numpy(rng.normal(size=(images, layers, n, 5))),
        value_vectors=torch.from_numpy(rng.normal(size=(images, layers, heads, n, 4))),
    )


def taken(maps, axis, order):
    """The maps with images (0), layers (1) or heads (2) in another order."""
    values, vectors = maps.values.index_select(axis, order), maps.value_vectors.index_select(axis, order)
    tokens = maps.tokens if axis == 2 else maps.tokens.index_select(axis, order)
    ids = tuple(maps.image_ids[i] for i in order) if axis == 0 else maps.image_ids
    return AttentionMaps(values, ids, GRID, tokens=tokens, value_vectors=vectors)


def check_places(metric, maps, kind, order, ordered):
    """What `ordered` measures to is what `maps` does, with layers or heads in that order."""
    expected = metric.per_image(maps)
    for axis, name in enumerate(metric.axes, 1):
        if name == kind:
            expected = expected.index_select(axis, order)
    torch.testing.assert_close(metric.per_image(ordered), expected)


@pytest.mark.parametrize("name", METRICS)
@FEW
@given(seed=SEEDS)
def test_an_image_has_its_value_whoever_stands_beside_it(name, seed):
    maps, order = some_maps(seed), torch.tensor([2, 0])
    metric = METRICS[name]
    torch.testing.assert_close(metric.per_image(taken(maps, 0, order)), metric.per_image(maps)[order])


@pytest.mark.parametrize("name", [name for name in METRICS if name not in SKETCHED])
@FEW
@given(seed=SEEDS)
def test_heads_in_another_order_change_places_and_nothing_else(name, seed):
    maps, order = some_maps(seed), torch.tensor([1, 2, 0])
    check_places(METRICS[name], maps, "head", order, taken(maps, 2, order))


@pytest.mark.parametrize("name", [name for name, m in METRICS.items() if not m.needs_all_layers])
@FEW
@given(seed=SEEDS)
def test_layers_in_another_order_change_places_and_nothing_else(name, seed):
    maps, order = some_maps(seed, layers=3), torch.tensor([2, 0, 1])
    check_places(METRICS[name], maps, "layer", order, taken(maps, 1, order))


@pytest.mark.parametrize("name", METRICS)
@example(seed=478)  # capacities of a flow that are rounded up
@FEW
@given(seed=SEEDS)
def test_values_lie_in_the_range_that_is_promised(name, seed):
    metric = METRICS[name]
    values = metric.per_image(some_maps(seed)).numpy()
    values = values if metric.from_mean is None else metric.from_mean(values.mean(0), len(values))
    low, high = (
        metric.narrow_range(stochastic=True, **metric.all_settings) if metric.narrow_range else metric.value_range
    )
    rounding = 1e-12 * max(1, np.abs(values).max())
    assert low is None or values.min() >= low - rounding
    assert high is None or values.max() <= high + rounding


@pytest.mark.parametrize("name", METRICS)
def test_single_precision_is_that_of_double(name):
    maps, metric = some_maps(3), METRICS[name]
    narrow = AttentionMaps(maps.values.float(), maps.image_ids, GRID, tokens=maps.tokens.float(),
                           value_vectors=maps.value_vectors.float())  # fmt: skip
    found = metric.per_image(narrow)
    assert found.dtype in (torch.float32, torch.float64)
    torch.testing.assert_close(found.double(), metric.per_image(maps), rtol=1e-4, atol=1e-5)
