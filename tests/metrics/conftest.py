"""Maps for the tests of metrics."""

import numpy as np
import pytest
import torch


@pytest.fixture
def soft():
    """Softmax maps [image, layer, head, query, key] of any shape from a seed, float64."""

    def make(*shape, seed=0, spread=2.0):
        noise = np.random.default_rng(seed).normal(size=shape)
        return torch.from_numpy(spread * noise).softmax(-1)

    return make


@pytest.fixture
def signed():
    """Maps of any shape with entries of both signs, as after heads are mixed and normalised."""

    def make(*shape, seed=0):
        return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))

    return make
