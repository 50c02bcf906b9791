from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import cosine_similarity

from attnprobe.core.errors import InputError
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.metrics import gram_distance

GRID = TokenGrid(2, 3)


def network(width=5, images=3, seed=0, grid=GRID, layers=2):
    rng = np.random.default_rng(seed)
    n = grid.n_tokens
    return AttentionMaps(
        torch.full((images, layers, 1, n, n), 1 / n),
        tuple(f"image {i}" for i in range(images)),
        grid,
        tokens=torch.from_numpy(rng.normal(size=(images, layers, n, width))),
    )


def test_it_is_the_mean_squared_difference_of_the_cosines_between_patches():
    one, two = network(seed=1), network(width=7, seed=2)
    m = gram_distance([one], [two], bootstrap=0)
    for image, layer in np.ndindex(3, 2):
        a, b = (cosine_similarity(side.tokens[image, layer, 1:].numpy()) for side in (one, two))
        assert m.per_image[image, layer] == pytest.approx(((a - b) ** 2).mean(), rel=1e-12)
    np.testing.assert_allclose(m.mean, m.per_image.mean(0))
    assert m.image_ids == one.image_ids and m.n_images == 3


def test_it_is_zero_for_rotated_and_rescaled_features_and_blind_to_the_prefix():
    one = network()
    rotation = torch.linalg.qr(torch.randn(5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))[0]
    turned = 3 * one.tokens @ rotation
    turned[:, :, 0] = 7.0
    assert gram_distance([one], [replace(one, tokens=turned)]).mean.max() < 1e-28


def test_chunks_of_any_size_and_further_sites_change_nothing():
    one, two = network(images=5, seed=1), network(images=5, seed=2)
    whole = gram_distance([one], [two], seed=3)
    other_site = replace(one, site="effective", is_effective=True)
    parts = gram_distance(
        [one.images(0, 2), other_site.images(0, 2), one.images(2, 5)], [two.images(0, 1), two.images(1, 5)], seed=3
    )
    np.testing.assert_array_equal(whole.per_image, parts.per_image)
    np.testing.assert_array_equal(whole.ci, parts.ci)
    assert (whole.ci[0] <= whole.mean).all() and (whole.mean <= whole.ci[1]).all()


@pytest.mark.parametrize(
    ("second", "why"),
    [
        (network(images=4), "one has more"),
        (network(images=2), "one has more"),
        (replace(network(), image_ids=("image 0", "image 2", "image 1")), "same order, got image 1 and image 2"),
        (network(layers=3), "got 2 layers of 2 x 3 patches and 3 layers of 2 x 3 patches"),
        (network(grid=TokenGrid(3, 2)), "got 2 layers of 2 x 3 patches and 2 layers of 3 x 2 patches"),
        (replace(network(), tokens=None), "needs tokens"),
    ],
)
def test_what_cannot_be_compared_is_refused(second, why):
    with pytest.raises(InputError, match=why):
        gram_distance([network()], [second])
