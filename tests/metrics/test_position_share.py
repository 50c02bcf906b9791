import numpy as np
import pytest
import torch

from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.metrics import measure, position_share


def share(values, **settings):
    maps = AttentionMaps(
        values, tuple(map(str, range(len(values)))), TokenGrid(1, values.shape[-1] - 1), stochastic=False
    )
    return measure([maps], [position_share.with_settings(**settings)], bootstrap=50)["position_share"]


def exact(values):
    """From whole maps, without projections: the mean inner product of two different images over that of one."""
    away = (values.numpy() - 1 / values.shape[-1]).reshape(*values.shape[:3], -1)
    alike = np.einsum("ilhx,jlhx->lhij", away, away)
    own = alike.diagonal(axis1=-2, axis2=-1)
    n = len(values)
    return (alike.sum((-1, -2)) - own.sum(-1)) / (n * (n - 1)) / own.mean(-1)


def test_the_same_map_in_every_image_is_all_position(soft):
    m = share(soft(1, 3, 2, 8, 8).expand(20, -1, -1, -1, -1))
    np.testing.assert_allclose(m.mean, 1, atol=1e-12)
    np.testing.assert_allclose(m.ci, 1, atol=1e-12)


def test_unrelated_maps_and_uniform_ones_score_nothing(soft):
    centred = soft(50, 4, 4, 12, 12)
    m = share(centred - centred.mean(0) + 1 / 12 + 0.01 * (soft(50, 4, 4, 12, 12, seed=1) - 1 / 12))
    assert (m.mean < 0.05).all()
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 4, 4, 12, 12)))
    assert share(1 / 12 + noise).mean.mean() < 0.005
    np.testing.assert_array_equal(m.baselines["uniform"].mean, 0)


@pytest.mark.parametrize("n", [30, 50])
@pytest.mark.parametrize("common", ["any", "key", "own"])
def test_sketches_stay_near_the_exact_share(soft, n, common):
    """Whatever the common part is: anything, the same keys for all queries, or the token itself."""
    same, own = soft(1, 4, 6, n, n, seed=1), soft(40, 4, 6, n, n, seed=2)
    same = {"any": same, "key": same[..., :1, :].expand_as(same), "own": torch.eye(n).double().expand_as(same)}[common]
    for weight in (0.2, 0.5, 0.8):
        values = weight * same + (1 - weight) * own
        for seed in range(3):
            difference = share(values, seed=seed).mean - exact(values)
            assert abs(difference).max() < 0.1 and abs(difference.mean()) < 0.015


@pytest.mark.parametrize("n", [16, 64])
def test_the_share_and_its_interval_are_those_of_the_population(n):
    """Half common maps of 300 heads; of 12 x 12 entries each has a sum of its own, so the sketch adds no error."""
    rng = np.random.default_rng(0)
    common, own = rng.normal(size=(1, 1, 300, 12, 12)), rng.normal(size=(n, 1, 300, 12, 12))
    m = share(torch.from_numpy(1 / 12 + common + own))
    population = (common**2).sum((-1, -2)) / ((common**2).sum((-1, -2)) + 144)
    assert abs((m.mean - population).mean()) < 0.01
    inside = (m.ci[0] <= m.mean) & (m.mean <= m.ci[1])
    assert inside.all() and ((m.ci[0] <= population[0]) & (population[0] <= m.ci[1])).mean() >= 0.92


def test_one_image_says_nothing_and_chunks_do_not_matter(soft):
    assert np.isnan(share(soft(1, 1, 1, 5, 5)).mean).all()
    values = soft(6, 2, 2, 5, 5)
    torch.testing.assert_close(position_share(values)[2:4], position_share(values[2:4]))


@pytest.mark.parametrize("n", [2, 4, 8, 16])
@pytest.mark.parametrize("weight", [0.2, 0.5])
def test_of_few_images_the_error_of_the_sketches_is_as_stated(soft, n, weight):
    values = weight * soft(1, 1, 24, 30, 30, seed=1) + (1 - weight) * soft(n, 1, 24, 30, 30, seed=2)
    expected = exact(values).clip(0, 1)
    off = np.concatenate([share(values, seed=seed).mean - expected for seed in range(4)])
    share_of_all = expected.mean()
    assert off.std() < 1.2 * (1 - share_of_all) * (0.09 * share_of_all + 0.1 / n)
