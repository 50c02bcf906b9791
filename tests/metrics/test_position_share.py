import numpy as np
import torch

from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.metrics import measure, position_share


def share(values, **settings):
    maps = AttentionMaps(values, tuple(map(str, range(len(values)))), TokenGrid(1, values.shape[-1] - 1))
    return measure([maps], [position_share.with_settings(**settings)], bootstrap=50)["position_share"]


def exact(values):
    """From whole maps, without projections."""
    away = values.numpy() - 1 / values.shape[-1]
    return (away.mean(0) ** 2).sum((-1, -2)) / (away**2).sum((-1, -2)).mean(0)


def test_the_same_map_in_every_image_is_all_position(soft):
    m = share(soft(1, 3, 2, 8, 8).expand(20, -1, -1, -1, -1))
    np.testing.assert_allclose(m.mean, 1, atol=1e-12)
    np.testing.assert_allclose(m.ci, 1, atol=1e-12)


def test_unrelated_maps_score_one_over_the_number_of_images_and_uniform_ones_nothing(soft):
    centred = soft(50, 4, 4, 12, 12)
    m = share(centred - centred.mean(0) + 1 / 12 + 0.01 * (soft(50, 4, 4, 12, 12, seed=1) - 1 / 12))
    assert (m.mean < 0.05).all()
    noise = torch.from_numpy(np.random.default_rng(0).normal(size=(50, 4, 4, 12, 12)))
    np.testing.assert_allclose(share(1 / 12 + noise).mean.mean(), 1 / 50, rtol=0.2)
    np.testing.assert_array_equal(m.baselines["uniform"].mean, 0)


def test_projections_stay_near_the_exact_share(soft):
    common, own = soft(1, 4, 6, 30, 30, seed=1), soft(40, 4, 6, 30, 30, seed=2)
    for weight in (0.2, 0.5, 0.8):
        values = weight * common + (1 - weight) * own
        for seed in range(3):
            difference = share(values, seed=seed).mean - exact(values)
            assert abs(difference).max() < 0.15 and abs(difference.mean()) < 0.03


def test_one_image_is_all_position_and_chunks_do_not_matter(soft):
    np.testing.assert_allclose(share(soft(1, 1, 1, 5, 5)).mean, 1)
    values = soft(6, 2, 2, 5, 5)
    torch.testing.assert_close(position_share(values)[2:4], position_share(values[2:4]))
