import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.errors import InputError
from attnprobe.metrics import layer_similarity, layer_similarity_centred
from tests.metrics import naive

GIVEN = settings(max_examples=25, deadline=None)


def by_loops(maps, **options):
    images, layers, heads = maps.shape[:3]
    result = np.zeros((images, layers, layers))
    for i, p, r in itertools.product(range(images), range(layers), range(layers)):
        cosines = []
        for h in range(heads):
            columns_p = naive.token_vectors(maps[i, p, h].tolist(), **options)
            columns_r = naive.token_vectors(maps[i, r, h].tolist(), **options)
            cosines += [naive.cosine(a, b) for a, b in zip(columns_p, columns_r, strict=True)]
        result[i, p, r] = naive.mean(cosines)
    return torch.from_numpy(result)


@pytest.mark.parametrize("axis", ["key", "query"])
@pytest.mark.parametrize("center", ["none", "mean", "uniform"])
@pytest.mark.parametrize("exclude_prefix", [0, 2])
def test_equals_a_double_loop_over_cosines(soft, signed, axis, center, exclude_prefix):
    options = {"axis": axis, "center": center, "exclude_prefix": exclude_prefix}
    for maps in (soft(2, 3, 2, 5, 5), signed(2, 3, 2, 5, 5), soft(1, 3, 2, 4, 6)):
        torch.testing.assert_close(layer_similarity(maps, **options), by_loops(maps, **options), atol=1e-12, rtol=0)


def test_float32_agrees_with_float64(soft):
    maps = soft(1, 4, 3, 50, 50)
    for center in ("none", "mean"):
        exact = layer_similarity(maps, center=center)
        torch.testing.assert_close(layer_similarity(maps.float(), center=center).double(), exact, atol=3e-7, rtol=0)


def test_identical_layers_have_similarity_one(soft):
    maps = soft(2, 1, 3, 6, 6).expand(-1, 4, -1, -1, -1)
    torch.testing.assert_close(layer_similarity(maps), torch.ones(2, 4, 4).double())


def test_uniform_maps_are_similar_raw_and_unrelated_centred():
    for n_tokens, dtype in itertools.product((5, 17, 197), (torch.float32, torch.float64)):
        maps = torch.full((1, 3, 2, n_tokens, n_tokens), 1 / n_tokens, dtype=dtype)
        torch.testing.assert_close(layer_similarity(maps), torch.ones(1, 3, 3, dtype=dtype))
        assert (layer_similarity_centred(maps) == 0).all()
        assert (layer_similarity(maps, center="uniform") == 0).all()


def test_maps_without_a_common_token_have_similarity_zero():
    identity = torch.eye(6).double()
    maps = torch.stack([identity, identity.roll(1, 0)])[None, :, None]
    torch.testing.assert_close(layer_similarity(maps), torch.eye(2).double()[None])


def test_a_zero_column_has_similarity_zero_even_with_itself(soft):
    maps = soft(1, 2, 1, 4, 4).clone()
    maps[0, 0, 0, :, 2] = 0
    assert layer_similarity(maps)[0, 0, 0].item() == pytest.approx(3 / 4)
    assert layer_similarity(maps)[0, 1, 1].item() == pytest.approx(1)


def test_unrelated_lognormal_columns_have_the_predicted_floor():
    for sigma in (0.1, 0.5, 1.0):
        maps = torch.from_numpy(np.random.default_rng(0).lognormal(sigma=sigma, size=(1, 2, 1, 20_000, 8)))
        assert layer_similarity(maps)[0, 0, 1].item() == pytest.approx(math.exp(-(sigma**2)), abs=0.01)
        assert layer_similarity_centred(maps)[0, 0, 1].item() == pytest.approx(0, abs=0.01)


@GIVEN
@given(
    seed=st.integers(0, 2**16),
    layers=st.integers(1, 4),
    heads=st.integers(1, 4),
    axis=st.sampled_from(["key", "query"]),
    center=st.sampled_from(["none", "mean"]),
)
def test_symmetric_in_range_and_blind_to_the_order_of_heads_and_tokens(seed, layers, heads, axis, center):
    maps = torch.from_numpy(np.random.default_rng(seed).normal(size=(2, layers, heads, 5, 5))).softmax(-1)
    m = layer_similarity(maps, axis=axis, center=center)
    torch.testing.assert_close(m, m.mT)
    low, high = layer_similarity.narrow_range(stochastic=True, axis=axis, center=center)
    assert (m >= low - 1e-12).all() and (m <= high + 1e-12).all()
    torch.testing.assert_close(m, layer_similarity(maps.flip(2), axis=axis, center=center))
    torch.testing.assert_close(m, layer_similarity(maps.flip(3, 4), axis=axis, center=center))


@GIVEN
@given(seed=st.integers(0, 2**16), scale=st.floats(1e-3, 1e3))
def test_the_scale_of_a_layer_does_not_matter(seed, scale):
    maps = torch.from_numpy(np.random.default_rng(seed).normal(size=(1, 3, 2, 4, 4)))
    scaled = maps * torch.tensor([1.0, scale, 1.0]).view(1, 3, 1, 1, 1)
    torch.testing.assert_close(layer_similarity(scaled), layer_similarity(maps))


def test_a_value_that_is_not_finite_shows_in_its_image_only(soft):
    for bad in (math.nan, math.inf):
        maps = soft(2, 3, 2, 4, 4).clone()
        maps[1, 2, 0, 1, 1] = bad
        m = layer_similarity(maps)
        assert m[0].isfinite().all()
        assert m[1, 2].isnan().all() and m[1, :, 2].isnan().all() and m[1, :2, :2].isfinite().all()


def test_options_that_do_not_exist_are_named(soft):
    with pytest.raises(InputError, match=r"axis='keys' is not a choice\. Did you mean 'key'"):
        layer_similarity(soft(1, 1, 1, 3, 3), axis="keys")
    with pytest.raises(InputError, match="must leave at least one of 3 tokens"):
        layer_similarity(soft(1, 1, 1, 3, 3), exclude_prefix=3)
    with pytest.raises(InputError, match="no setting 'centre'"):
        layer_similarity.with_settings(centre="mean")
