import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.errors import InputError
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.metrics import head_dependence, map_cka, measure, token_cka


def linear_cka(x, y):
    """Kornblith et al.: columns centred, then Frobenius norms of the cross products."""
    x, y = x - x.mean(0), y - y.mean(0)
    return np.linalg.norm(y.T @ x) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def hsic1(x, y):
    """Song et al. with traces and sums, from raw kernels."""
    n = len(x)
    k, one = x @ x.T, np.ones(len(x))
    m = y @ y.T
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    total = np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))


def rows_of(image):
    """[layer, head, query, key] -> [layer][query, head x key]."""
    return [np.concatenate(list(layer), axis=1) for layer in image.numpy()]


def as_maps(values, tokens=None):
    ids = tuple(map(str, range(len(values))))
    return AttentionMaps(values, ids, TokenGrid(1, values.shape[-1] - 1), tokens=tokens)


def test_the_biased_form_of_one_image_is_the_linear_cka_of_its_rows(soft):
    maps = soft(1, 4, 3, 6, 6)
    m = measure([as_maps(maps)], [map_cka.with_settings(estimator="biased")])["map_cka"]
    rows = rows_of(maps[0])
    for p, r in itertools.product(range(4), repeat=2):
        np.testing.assert_allclose(m.mean[p, r], linear_cka(rows[p], rows[r]), rtol=1e-10)


def test_the_unbiased_form_is_a_ratio_of_means_of_hsic_over_images(soft):
    maps = soft(5, 3, 2, 6, 6)
    m = measure([as_maps(maps[:2]), as_maps(maps[2:])], [map_cka])["map_cka"]
    rows = [rows_of(image) for image in maps]
    mean = np.array(
        [[np.mean([hsic1(of[p], of[r]) for of in rows]) for r in range(3)] for p in range(3)]
    )  # fmt: skip
    expected = mean / np.sqrt(np.outer(np.diag(mean), np.diag(mean)))
    np.testing.assert_allclose(m.mean, expected, rtol=1e-9)
    assert (m.ci[0] <= m.mean + 1e-12).all() and (m.mean <= m.ci[1] + 1e-12).all()
    assert np.isnan(m.std).all() and m.settings["interval"] == "bootstrap"


def test_tokens_are_compared_in_the_same_way(soft, signed):
    tokens = signed(3, 4, 7, 5)
    m = measure([as_maps(soft(3, 4, 1, 7, 7), tokens)], [token_cka])["token_cka"]
    mean = [[np.mean([hsic1(x[p].numpy(), x[r].numpy()) for x in tokens]) for r in range(4)] for p in range(4)]
    np.testing.assert_allclose(m.mean, mean / np.sqrt(np.outer(np.diag(mean), np.diag(mean))), rtol=1e-9)


def test_unrelated_layers_score_zero_without_bias_and_high_with_it(signed):
    tokens = signed(400, 2, 6, 20)
    maps = as_maps(torch.full((400, 2, 1, 6, 6), 1 / 6), tokens)
    assert abs(measure([maps], [token_cka])["token_cka"].mean[0, 1]) < 0.03
    assert measure([maps], [token_cka.with_settings(estimator="biased")])["token_cka"].mean[0, 1] > 0.5


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**16), estimator=st.sampled_from(["unbiased", "biased"]))
def test_blind_to_rotation_scale_shift_and_the_order_of_heads(seed, estimator):
    rng = np.random.default_rng(seed)
    one, other = rng.normal(size=(2, 3, 6, 4))
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    changed = 3 * other @ turn + rng.normal(size=4)
    h = token_cka(torch.from_numpy(np.stack([one, other, changed], 1)), estimator=estimator)
    ratio = token_cka.from_mean(h.mean(0).numpy())
    np.testing.assert_allclose(ratio[0, 1], ratio[0, 2], atol=1e-9)
    np.testing.assert_allclose([ratio[1, 2], ratio[0, 0]], 1, atol=1e-9)
    np.testing.assert_allclose(ratio, ratio.T, atol=1e-12)
    assert (abs(ratio) <= 1 + 1e-9).all()
    maps = torch.from_numpy(rng.normal(size=(2, 3, 4, 6, 6))).softmax(-1)
    torch.testing.assert_close(map_cka(maps), map_cka(maps.flip(2)))


def test_a_layer_whose_queries_attend_alike_carries_nothing(soft):
    maps = soft(3, 2, 2, 6, 6).clone()
    maps[:, 1] = maps[:, 1, :, :1]
    for values in (maps, maps.float()):
        m = measure([as_maps(values)], [map_cka])["map_cka"]
        np.testing.assert_allclose(m.mean, [[1, 0], [0, 0]], atol=1e-6)
        np.testing.assert_array_equal(m.baselines["uniform"].mean, np.zeros((2, 2)))


def test_single_precision_is_enough(soft):
    maps = soft(2, 4, 3, 40, 40, spread=0.05)  # near uniform
    exact, single = (measure([as_maps(x)], [map_cka])["map_cka"].mean for x in (maps, maps.float()))
    np.testing.assert_allclose(single, exact, atol=2e-5)


def test_fewer_than_four_tokens_are_refused_and_nan_stays(soft):
    with pytest.raises(InputError, match="3 tokens are too few for the unbiased HSIC, which needs 4"):
        map_cka(soft(1, 2, 1, 3, 3))
    assert map_cka(soft(1, 2, 1, 3, 3), estimator="biased").isfinite().all()
    maps = soft(2, 3, 1, 5, 5).clone()
    maps[1, 1, 0, 2, 3] = math.nan
    values = map_cka(maps)
    assert values[0].isfinite().all() and values[1, 1].isnan().all() and values[1, 0, 2].isfinite()


def test_one_image_has_no_interval_and_no_bootstrap_none_either(soft):
    one = measure([as_maps(soft(1, 3, 2, 6, 6))], [map_cka])["map_cka"]
    none = measure([as_maps(soft(3, 3, 2, 6, 6))], [map_cka], bootstrap=0)["map_cka"]
    for m in (one, none):
        assert np.isfinite(m.mean).all() and np.isnan(m.ci).all() and m.settings["interval"] == "none"


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
