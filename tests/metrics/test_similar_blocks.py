import itertools
import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.errors import InputError
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.metrics import measure, similar_blocks
from attnprobe.metrics.similar_blocks import COMPARE, CURVE, _count_interval
from attnprobe.stats.bootstrap import interval_of_mean
from tests.metrics import naive


def compared_with(block, n, compare, k):
    return {
        "previous": [x for x in range(n) if x == block - 1],
        "next": [x for x in range(n) if x == block + 1],
        "neighbors": [x for x in range(n) if x != block and abs(x - block) <= k],
        "neighbors-max": [x for x in range(n) if x != block and abs(x - block) <= k],
        "any": [x for x in range(n) if x != block],
    }[compare]


def by_loops(image, tau, compare="previous", k=2, pool="head", **vectors):
    """[layer]: the ratio of one image [layer, head, query, key] at one threshold."""
    if pool == "head_mean_map":
        image = image.mean(1, keepdim=True)
    n, heads = image.shape[:2]
    pooled = max if compare in ("any", "neighbors-max") else naive.mean
    s = []
    for block in range(n):
        others = compared_with(block, n, compare, k)
        here = []
        for head in range(heads):
            mine = naive.token_vectors(image[block, head].tolist(), **vectors)
            theirs = [naive.token_vectors(image[other, head].tolist(), **vectors) for other in others]
            for t in range(len(mine)):
                here.append(pooled([naive.cosine(mine[t], their[t]) for their in theirs]) if others else None)
        s.append(here)
    ratios = []
    for block in range(n):
        bar = tau
        if tau == "nbr-mean":
            near = [s[b] for b in range(n) if abs(b - block) <= k and s[b][0] is not None]
            bar = naive.mean(x for layer in near for x in layer) if near else 0
        ratios.append(0.0 if s[block][0] is None else naive.mean(x > bar for x in s[block]))
    return ratios


def blocks(pattern, n_tokens=6, heads=2, images=3, seed=0):
    """Maps [image, layer, ...] in which layers with the same letter are equal and others unrelated."""
    generator = torch.Generator().manual_seed(seed)
    of_letter = {
        letter: (8 * torch.randn(images, heads, n_tokens, n_tokens, generator=generator, dtype=torch.float64)).softmax(
            -1
        )
        for letter in dict.fromkeys(pattern)
    }
    values = torch.stack([of_letter[letter] for letter in pattern], 1)
    return AttentionMaps(values, tuple(map(str, range(images))), TokenGrid(1, n_tokens - 1))


def summary(pattern, **options):
    return measure([blocks(pattern)], [similar_blocks.with_settings(**options)])["similar_blocks"].summary


@pytest.mark.parametrize("compare", COMPARE)
@pytest.mark.parametrize("pool", ["head", "head_mean_map"])
def test_equals_loops_at_thresholds_of_the_curve_and_between(soft, compare, pool):
    maps = soft(2, 4, 2, 5, 5, spread=1.0)
    for options in ({}, {"axis": "query", "center": "mean", "exclude_prefix": 1, "k": 1}):
        options = {"compare": compare, "pool": pool, **options}
        fast = similar_blocks(maps, tau=0.625, **options)
        taus = sorted([*CURVE, 0.625])
        assert fast.shape == (2, len(taus), 4)
        for row in {*range(0, len(taus), 10), taus.index(0.625), len(taus) - 1}:
            slow = [by_loops(image, taus[row], **options) for image in maps]
            np.testing.assert_allclose(fast[:, row], slow, atol=1e-12)


@pytest.mark.parametrize("compare", COMPARE)
def test_the_relative_threshold_equals_loops(soft, compare):
    maps = soft(3, 5, 2, 5, 5, spread=1.0)
    for k in (1, 2):
        fast = similar_blocks(maps, tau="nbr-mean", compare=compare, k=k)
        assert fast.shape == (3, len(CURVE) + 1, 5)
        np.testing.assert_allclose(
            fast[:, -1], [by_loops(x, "nbr-mean", compare=compare, k=k) for x in maps], atol=1e-12
        )


def test_blocks_that_repeat_the_one_before_are_found_and_counted_from_one():
    found = summary("ABCDDD")
    assert found["similar"] == [5, 6] and found["count"] == 2 and found["of"] == 6
    assert found["collapsed_from"] == 5
    assert found["count_ci"] == [2, 2]
    assert found["ratio"][0] == 0 and max(found["ratio"][1:4]) < 0.9 and found["ratio"][4:] == [1, 1]
    assert found["n_images"] == 3 and (found["tau"], found["rho"], found["compare"]) == (0.9, 0.9, "previous")


def test_a_block_that_differs_later_means_no_collapse():
    assert summary("AABBC")["similar"] == [2, 4]
    assert summary("AABBC")["collapsed_from"] is None
    assert summary("ABCD")["similar"] == [] and summary("ABCD")["collapsed_from"] is None


def test_identical_blocks_collapse_at_the_second():
    found = summary("AAAA")
    assert found["count"] == 3 and found["collapsed_from"] == 2
    assert found["curve"]["count"] == [3] * 50 and found["curve"]["low"] == [3] * 50


def test_what_a_block_is_compared_with_decides():
    assert summary("ABCDDD", compare="next")["similar"] == [4, 5]
    assert summary("ABCDDD", compare="next")["collapsed_from"] == 4  # the last has no next block to compare with
    assert summary("ABACA", compare="any")["similar"] == [1, 3, 5]
    assert summary("ABCDDD", compare="neighbors", k=1)["similar"] == [5, 6]
    assert summary("ABCDDD", compare="neighbors-max", k=1)["similar"] == [4, 5, 6]
    assert summary("ABCAAB", compare="neighbors-max", k=3)["similar"] == [1, 4, 5]


def test_one_block_is_never_similar():
    for compare in COMPARE:
        assert summary("A", compare=compare)["count"] == 0
        assert summary("A", compare=compare)["collapsed_from"] is None


def test_the_summary_follows_from_the_mean_ratio(soft):
    values = soft(20, 6, 2, 7, 7, spread=0.5)
    maps = AttentionMaps(values, tuple(map(str, range(20))), TokenGrid(2, 3))
    for tau in (0.7, 0.875, "nbr-mean"):
        m = measure([maps], [similar_blocks.with_settings(tau=tau, rho=0.4)])["similar_blocks"]
        row = -1 if tau == "nbr-mean" else m.coords["threshold"].index(tau)
        ratio = np.mean([by_loops(image, tau) for image in values], axis=0)
        np.testing.assert_allclose(m.summary["ratio"], ratio, atol=1e-12)
        assert m.summary["similar"] == [int(b) + 1 for b in np.flatnonzero(ratio > 0.4)]
        assert m.summary["count_ci"][0] <= m.summary["count"] <= m.summary["count_ci"][1]
        np.testing.assert_allclose(m.summary["ratio_ci"], m.ci[:, row].T)
        curve = m.summary["curve"]
        assert curve["threshold"] == sorted({*CURVE, *([tau] if tau != "nbr-mean" else [])})
        assert curve["count"] == sorted(curve["count"], reverse=True)
        assert all(low <= high for low, high in zip(curve["low"], curve["high"], strict=True))


@pytest.mark.parametrize("ratio", [0.89, 0.91, None])
def test_the_interval_of_the_count_covers_the_true_count(ratio):
    """Eight blocks whose shares scatter around a ratio near rho, or around eight others; 500 repetitions."""
    rng = np.random.default_rng(0)
    truth = np.full(8, ratio) if ratio else np.linspace(0.7, 0.99, 8)
    shares = truth + 0.1 * rng.normal(size=(32, 500, 8))
    ci = interval_of_mean(shares, 1000, 0)
    covered = []
    for k in range(500):
        m = replace(COUNTED, mean=shares[:, k].mean(0)[None], ci=ci[:, None, k], n_images=32)
        (low,), (high,) = _count_interval(m, 0.9)
        covered.append(low <= (truth > 0.9).sum() <= high)
    assert np.mean(covered) >= 0.92


COUNTED = measure([blocks("A" * 8)], [similar_blocks])["similar_blocks"]


def test_the_interval_of_the_count_is_that_of_its_blocks():
    """Six of ten images repeat block 1: at rho=0.5 the count is 1 or 0 according to the images drawn."""
    repeats, differs = blocks("AA", images=6).values, blocks("AB", images=4, seed=1).values
    maps = AttentionMaps(torch.cat([repeats, differs]), tuple("0123456789"), TokenGrid(1, 5))
    metric = similar_blocks.with_settings(rho=0.5)
    assert measure([maps], [metric])["similar_blocks"].summary["count_ci"] == [0, 1]
    one = measure([maps.images(0, 1)], [metric])["similar_blocks"].summary
    assert one["count"] == 1 and one["count_ci"] == [None, None] and one["ratio_ci"] == [[None, None]] * 2
    normal = measure([maps], [metric], bootstrap=0)["similar_blocks"].summary
    assert normal["count_ci"] == [0, 1]


def test_uniform_maps_are_similar_everywhere_and_nowhere_once_centred():
    maps = torch.full((1, 4, 2, 9, 9), 1 / 9)
    assert similar_blocks(maps)[0, :, 1:].eq(1).all() and similar_blocks(maps)[0, :, 0].eq(0).all()
    assert similar_blocks(maps, center="mean").eq(0).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), compare=st.sampled_from(COMPARE))
def test_in_range_falling_with_the_threshold_and_blind_to_head_order(seed, compare):
    maps = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, 4, 3, 5, 5))).softmax(-1)
    ratio = similar_blocks(maps, compare=compare)
    assert ((ratio >= 0) & (ratio <= 1)).all() and (ratio.diff(dim=1) <= 0).all()
    torch.testing.assert_close(ratio, similar_blocks(maps.flip(2), compare=compare))


def test_a_comparison_does_not_hide_what_is_not_a_number(soft):
    maps = soft(2, 4, 2, 4, 4).clone()
    maps[1, 1, 0, 2, 2] = math.nan
    ratio = similar_blocks(maps)
    assert ratio[0].isfinite().all()
    assert ratio[1].isnan().all(0).tolist() == [False, True, True, False]


def test_bad_options_are_refused(soft):
    refused = partial(pytest.raises, InputError)
    for options, message in (
        ({"compare": "prevous"}, "Did you mean 'previous'"),
        ({"pool": "mean"}, "pool='mean'"),
        ({"tau": 1.5}, "tau=1.5 must be a cosine"),
        ({"tau": "mean"}, "or 'nbr-mean'"),
    ):
        with refused(match=message):
            similar_blocks(soft(1, 2, 1, 3, 3), **options)


def test_every_partner_counts_once():
    """Guards the reference itself: partners by hand for four blocks."""
    table = {
        "previous": [[], [0], [1], [2]],
        "next": [[1], [2], [3], []],
        "any": [[1, 2, 3], [0, 2, 3], [0, 1, 3], [0, 1, 2]],
    }
    for compare, block in itertools.product(table, range(4)):
        assert compared_with(block, 4, compare, 2) == table[compare][block]
