import itertools
import math

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.errors import InputError
from attnprobe.core.maps import TokenGrid
from attnprobe.metrics import attention_flow, attention_rollout
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


GRID_OF_FLOW = TokenGrid(2, 2)


def by_networkx(image, layer, key):
    """Maximum flow in floating point, from the class token after this block to an input token."""
    graph = networkx.DiGraph()
    mixed = 0.5 * np.eye(image.shape[-1]) + 0.5 * image.mean(1).numpy()
    for (above, q, k), capacity in np.ndenumerate(mixed):
        graph.add_edge((above + 1, q), (above, k), capacity=float(capacity))
    return networkx.maximum_flow_value(graph, (layer + 1, 0), (0, key))


def test_equals_networkx(soft):
    maps = soft(2, 3, 2, 5, 5)
    flow = attention_flow(maps, GRID_OF_FLOW)
    for i, layer, key in np.ndindex(2, 3, 5):
        np.testing.assert_allclose(flow[i, layer, key], by_networkx(maps[i], layer, key), atol=2e-6)


def by_smallest_cut(image, layer, key):
    """By the theorem of Ford and Fulkerson: the smallest of all cuts, each a set of tokens on the source's side."""
    mixed = [[[0.5 * (i == j) + 0.5 * sum(float(head[i][j]) for head in block) / len(block)
               for j in range(3)] for i in range(3)] for block in image[: layer + 1]]  # fmt: skip
    cuts = []
    for sides in itertools.product((False, True), repeat=3 * layer):
        upper = [[True, False, False], *(list(sides[at : at + 3]) for at in range(0, 3 * layer, 3))]
        levels = [*upper, [token != key for token in range(3)]]  # the top first
        cuts.append(
            sum(
                mixed[layer - depth][i][j]
                for depth in range(layer + 1) for i in range(3) for j in range(3)
                if levels[depth][i] and not levels[depth + 1][j]
            )
        )  # fmt: skip
    return min(cuts)


def test_equals_the_smallest_of_all_cuts(soft):
    maps = soft(2, 3, 2, 3, 3)
    flow = attention_flow(maps, TokenGrid(1, 2))
    for i, layer, key in np.ndindex(2, 3, 3):
        np.testing.assert_allclose(flow[i, layer, key], by_smallest_cut(maps[i], layer, key), atol=2e-6)


def test_without_a_class_token_there_is_no_source(soft):
    with pytest.raises(InputError, match="starts at the class token"):
        attention_flow(soft(1, 1, 1, 5, 5), TokenGrid(1, 4, prefix=("reg0",)))


def test_one_block_is_its_map_and_flow_is_never_below_rollout(soft):
    maps = soft(2, 3, 2, 5, 5)
    flow, rolled = attention_flow(maps, GRID_OF_FLOW), attention_rollout(maps, GRID_OF_FLOW)
    torch.testing.assert_close(flow[:, 0], rolled[:, 0], atol=1e-6, rtol=0)
    assert (flow >= rolled - 2e-6).all() and (flow <= 1 + 1e-6).all()


def test_identity_flows_straight_down_and_nan_is_kept():
    maps = torch.eye(5).expand(2, 3, 1, 5, 5).clone()
    maps[1, 0, 0, 2, 2] = math.nan
    flow = attention_flow(maps, GRID_OF_FLOW)
    np.testing.assert_allclose(flow[0], [[1, 0, 0, 0, 0]] * 3, atol=1e-6)
    assert flow[1].isnan().all()
