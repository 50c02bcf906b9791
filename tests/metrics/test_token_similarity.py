import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.errors import InputError
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.metrics import image_similarity, measure, token_layer_similarity, token_similarity
from tests.metrics import naive


def test_equals_a_loop_over_pairs(signed):
    tokens = signed(2, 3, 5, 4)
    tokens[1, 2, 3] = 0
    fast = token_similarity(tokens)
    for i, layer in itertools.product(range(2), range(3)):
        x = tokens[i, layer].tolist()
        slow = naive.mean(naive.cosine(x[a], x[b]) for a in range(5) for b in range(5) if a != b)
        np.testing.assert_allclose(fast[i, layer], slow, atol=1e-12)


def test_one_for_tokens_that_point_the_same_way_and_zero_for_orthogonal_ones(signed):
    same = signed(1, 1, 1, 8) * torch.tensor([1.0, 2.0, 0.5]).view(1, 1, 3, 1)
    assert token_similarity(same).item() == pytest.approx(1)
    assert token_similarity(torch.eye(6)[None, None]).item() == pytest.approx(0, abs=1e-7)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), n=st.integers(2, 7))
def test_in_range_and_blind_to_the_order_and_length_of_tokens(seed, n):
    rng = np.random.default_rng(seed)
    tokens = torch.from_numpy(rng.normal(size=(2, 2, n, 3)))
    s = token_similarity(tokens)
    assert (s >= -1 / (n - 1) - 1e-12).all() and (s <= 1 + 1e-12).all()
    lengths = torch.from_numpy(rng.uniform(0.1, 10, size=(2, 2, n, 1)))
    torch.testing.assert_close(s, token_similarity(tokens.flip(-2) * lengths))


def test_equals_loops_over_tokens(signed):
    tokens = signed(2, 3, 4, 5)
    tokens[0, 1, 2] = 0
    fast = token_layer_similarity(tokens)
    for i, p, r in np.ndindex(2, 3, 3):
        slow = naive.mean(map(naive.cosine, tokens[i, p].tolist(), tokens[i, r].tolist()))
        np.testing.assert_allclose(fast[i, p, r], slow, atol=1e-12)


def test_scale_does_not_matter_and_sign_does(signed):
    tokens = signed(2, 1, 4, 5)
    similarity = token_layer_similarity(torch.cat([tokens, 7 * tokens, -tokens], 1))
    torch.testing.assert_close(similarity[0], torch.tensor([[1, 1, -1], [1, 1, -1], [-1, -1, 1]]).double())


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
