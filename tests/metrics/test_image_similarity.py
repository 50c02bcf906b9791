import numpy as np
import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.metrics import image_similarity, measure

GRID = TokenGrid(2, 3)


def similarity(tokens, grid=GRID, **settings):
    tokens = torch.as_tensor(tokens, dtype=torch.float64)
    images, layers = tokens.shape[:2]
    maps = torch.full((images, layers, 1, grid.n_tokens, grid.n_tokens), 1 / grid.n_tokens)
    given = AttentionMaps(maps, tuple(map(str, range(images))), grid, tokens=tokens)
    return measure([given], [image_similarity.with_settings(**settings)], bootstrap=50)["image_similarity"].mean


def tokens(images=20, width=12, seed=0):
    return np.random.default_rng(seed).normal(size=(images, 2, GRID.n_tokens, width))


def pairs(vectors):
    """Mean cosine over all pairs of images, one by one."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    n = len(unit)
    return np.mean([unit[i] @ unit[j] for i in range(n) for j in range(n) if i != j])


def test_it_is_the_mean_cosine_of_all_pairs_of_images():
    x = tokens()
    for layer in (0, 1):
        of_class, of_mean = pairs(x[:, layer, 0]), pairs(x[:, layer, 1:].mean(1))
        assert similarity(x, token="class")[layer] == pytest.approx(of_class, abs=1e-12)
        assert similarity(x, token="mean")[layer] == pytest.approx(of_mean, abs=1e-12)
        assert similarity(x)[layer] == pytest.approx(max(of_class, of_mean), abs=1e-12)


def test_the_same_vector_in_all_images_scores_one():
    x = tokens()
    x[:, 1, 0] = x[0, 1, 0]
    assert similarity(x)[1] == pytest.approx(1) and similarity(x)[0] < 0.5


def test_a_massive_activation_that_all_images_share_is_not_all_there_is():
    x = tokens(width=300)
    x[:, :, 0, 5] = 1000
    assert (similarity(x, token="class", clip=1e9) > 0.99).all()
    assert (similarity(x, token="class") < 0.3).all()


def test_without_a_class_token_the_mean_patch_stands_for_it():
    grid, x = TokenGrid(2, 3, ()), tokens()[:, :, 1:]
    np.testing.assert_array_equal(similarity(x, grid, token="class"), similarity(x, grid, token="mean"))
    np.testing.assert_array_equal(similarity(x, grid), similarity(x, grid, token="mean"))


def test_one_image_has_no_other_and_odd_settings_are_refused():
    assert np.isnan(similarity(tokens(images=1))).all()
    with pytest.raises(InputError, match="clip=1 must be above 1"):
        image_similarity(torch.ones(1, 1, 7, 4), GRID, clip=1)
    with pytest.raises(InputError, match="token"):
        image_similarity(torch.ones(1, 1, 7, 4), GRID, token="last")
