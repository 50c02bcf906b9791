import numpy as np
import pytest
import torch

from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.metrics import content_overlap, measure


def content(values, chunks=1, **settings):
    grid = TokenGrid(1, values.shape[-1] - 1)
    ids = [str(i) for i in range(len(values))]
    size = -(-len(values) // chunks)
    parts = [
        AttentionMaps(values[at : at + size], tuple(ids[at : at + size]), grid) for at in range(0, len(values), size)
    ]
    return measure(parts, [content_overlap.with_settings(**settings)], bootstrap=50)["content_overlap"]


def exact(values):
    """Overlap of two blocks of one image minus that of all pairs of different images, from whole maps."""
    x = values.numpy()
    n = len(x)
    rows = x.shape[2] * x.shape[3]
    pairs = np.array([[[[np.minimum(a, b).sum() / rows for b in two] for a in one] for two in x] for one in x])
    own = pairs[range(n), range(n)].mean(0)
    return own - (pairs.sum((0, 1)) - n * own) / (n * (n - 1))


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("shape", [(2, 9), (6, 13)])
def test_it_stays_near_the_exact_difference_over_all_pairs_of_images(soft, spread, shape):
    heads, n = shape
    values = soft(12, 3, heads, n, n, spread=spread)
    values[:, 1] = 0.7 * values[:, 0] + 0.3 * values[:, 1]
    off = [content(values, seed=seed).mean - exact(values) for seed in range(12)]
    assert np.abs(np.mean(off, 0)).max() < 0.03 and np.std(off, 0).max() < 0.04


def test_maps_that_are_the_same_in_all_images_have_none_exactly(soft):
    m = content(soft(1, 3, 4, 10, 10).expand(8, -1, -1, -1, -1))
    np.testing.assert_allclose(m.mean, 0, atol=1e-12)
    np.testing.assert_allclose(m.ci, 0, atol=1e-12)


def test_a_copy_of_content_has_as_much_as_the_block_itself(soft):
    values = soft(16, 1, 4, 10, 10).expand(-1, 3, -1, -1, -1)
    m = content(values)
    np.testing.assert_allclose(m.mean, m.mean[0, 0], atol=1e-12)
    assert m.mean[0, 0] == pytest.approx(exact(values)[0, 0], abs=0.05)


def test_unrelated_blocks_have_none_beside_their_own(soft):
    m = content(soft(32, 4, 4, 10, 10))
    apart = ~np.eye(4, dtype=bool)
    assert np.abs(m.mean[apart]).max() < 0.05 < m.mean.diagonal().min()


def test_the_order_and_the_chunks_of_the_images_do_not_matter(soft):
    values = soft(12, 3, 2, 8, 8)
    once = content(values)
    for chunks in (2, 5, 12):
        again = content(values, chunks)
        np.testing.assert_array_equal(again.mean, once.mean)
        np.testing.assert_array_equal(again.ci, once.ci)
    order = torch.from_numpy(np.random.default_rng(0).permutation(12))
    np.testing.assert_allclose(content(values[order]).mean, once.mean, atol=1e-12)


def test_many_rows_are_followed_at_some_queries_only(soft):
    """4 x 600 rows: every second query, so that what the others look at changes nothing."""
    values = soft(2, 1, 4, 600, 4).float()
    moved = values.clone()
    moved[..., 1::2, :] = 0.25
    torch.testing.assert_close(content_overlap(values), content_overlap(moved))


def test_the_interval_covers_the_number_of_the_population(soft):
    """Blocks that share half of their content: of 30 draws of 24 images most intervals hold the mean of all draws."""
    many = soft(30 * 24, 2, 4, 8, 8, spread=2.0)
    many[:, 1] = (many[:, 0] + many[:, 1]) / 2
    draws = [content(many[at : at + 24]) for at in range(0, len(many), 24)]
    truth = np.mean([m.mean[0, 1] for m in draws])
    assert np.mean([m.ci[0, 0, 1] <= truth <= m.ci[1, 0, 1] for m in draws]) >= 0.85


def test_one_image_says_nothing(soft):
    assert np.isnan(content(soft(1, 2, 2, 5, 5)).mean).all()
