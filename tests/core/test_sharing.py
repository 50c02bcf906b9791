"""Shared functions run once for the same tensor and settings, and as often as they are called outside."""

import pytest
import torch

from attnprobe.core.metric import shares_of_magnitude
from attnprobe.core.sharing import shared, sharing

CALLS = []


@shared
def scaled(tensor, factor, *, offset=0):
    CALLS.append(factor)
    return (tensor * factor + offset).sum()


@shared
def product(one, other):
    CALLS.append("product")
    return one @ other


@pytest.fixture(autouse=True)
def _no_calls():
    CALLS.clear()


def test_same_tensor_and_settings_are_computed_once_within_and_anew_outside():
    x = torch.ones(3)
    assert scaled(x, 2) == scaled(x, 2) == 6 and len(CALLS) == 2
    with sharing():
        assert scaled(x, 2) == scaled(x, 2) == scaled(x[:], 2) == 6 and len(CALLS) == 3
    with sharing():
        scaled(x, 2)
    assert len(CALLS) == 4


def test_other_settings_tensors_and_views_have_results_of_their_own():
    x = torch.arange(4.0)
    with sharing():
        found = [scaled(x, 2), scaled(x, 3), scaled(x, 2, offset=1), scaled(x.clone(), 2), scaled(x[:2], 2)]
    assert [float(value) for value in found] == [12, 18, 16, 12, 2] and len(CALLS) == 5


def test_every_tensor_that_is_given_counts():
    x, y = torch.eye(2), torch.ones(2, 2)
    with sharing():
        assert torch.equal(product(x, y), y) and torch.equal(product(x, x), x) and torch.equal(product(x, y), y)
    assert len(CALLS) == 2


def test_nothing_is_kept_after_an_error():
    x = torch.ones(3)
    with pytest.raises(KeyError), sharing():
        scaled(x, 2)
        raise KeyError
    scaled(x, 2)
    assert len(CALLS) == 2


def test_metrics_of_renormalised_maps_share_one_copy():
    maps = torch.randn(1, 2, 2, 4, 4)
    with sharing():
        assert shares_of_magnitude(maps) is shares_of_magnitude(maps)
