"""Filters by their sums, and their maps against the convolution itself."""

import copy

import pytest
import torch
from torch import nn

from attnprobe.core.errors import InputError, ShapeError
from attnprobe.models.initialisers.filters import drawn_filters, filter_maps, initialise_filters


def stack(channels=8, kernel=3, layers=2):
    return nn.Sequential(
        *(nn.Conv2d(channels, channels, kernel, padding="same", groups=channels) for _ in range(layers))
    )


@pytest.mark.parametrize(("init", "taps"), [("impulse", 1), ("box1", 1), ("box4", 4), ("box25", 25)])
def test_boxes_have_so_many_equal_taps_and_energy_one_over_the_side(init, taps):
    filters = drawn_filters(init, 40, 5)
    assert ((filters > 0).flatten(1).sum(-1) == taps).all()
    torch.testing.assert_close(filters.square().sum((1, 2, 3)), torch.full((40,), 1 / 5))
    assert filters.unique().numel() <= 2


def test_every_place_is_drawn():
    torch.manual_seed(0)
    assert (drawn_filters("impulse", 300, 3).sum((0, 1)) > 0).all()


def test_gaussians_fall_off_with_the_distance_from_a_drawn_place():
    torch.manual_seed(0)
    filters = drawn_filters("gau2.5", 50, 5)[:, 0]
    assert filters.square().sum((1, 2)).mean().item() == pytest.approx(1 / 5)
    for each in filters:
        row, col = divmod(int(each.argmax()), 5)
        for r in range(5):
            for c in range(5):
                ratio = torch.exp(torch.tensor(-((r - row) ** 2 + (c - col) ** 2) / 5.0))
                torch.testing.assert_close(each[r, c] / each.max(), ratio)


def test_random_is_pytorchs_default():
    torch.manual_seed(0)
    ours, theirs = drawn_filters("random", 2000, 5), nn.Conv2d(2000, 2000, 5, groups=2000).weight
    assert ours.abs().max() <= 0.2 and ours.std().item() == pytest.approx(theirs.std().item(), rel=0.02)


@pytest.mark.parametrize("init", ["random", "softmax", "box3"])
def test_shared_filters_stay_shared_while_they_learn(init):
    model = stack()
    initialise_filters(model, init, num_heads=2)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    before = model[0].weight.detach().clone()
    model(torch.randn(2, 8, 6, 6)).square().sum().backward()
    optimiser.step()
    after = model[0].weight.detach()
    assert not torch.allclose(before, after)
    for channel in range(8):
        assert torch.equal(after[channel], after[channel // 4 * 4])
    assert sum(p.numel() for n, p in model.named_parameters() if "original" in n) == 2 * 2 * 9


def test_softmax_filters_are_positive_and_sum_to_one():
    model = stack()
    initialise_filters(model, "softmax")
    weight = model[1].weight
    torch.testing.assert_close(weight.sum((1, 2, 3)), torch.ones(8))
    assert (weight > 0).all() and weight.std() > 0


@pytest.mark.parametrize(("init", "heads"), [("box2", None), ("softmax", 4)])
def test_frozen_filters_do_not_learn_but_their_biases_do(init, heads):
    model = stack()
    initialise_filters(model, init, num_heads=heads, trainable=False)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["0.bias", "1.bias"]


def test_filters_can_be_drawn_again_unless_they_are_shared_or_softmaxed():
    model = stack()
    initialise_filters(model, "box9", trainable=False)
    initialise_filters(model, "impulse")
    assert ((model[0].weight > 0).flatten(1).sum(-1) == 1).all() and model[0].weight.requires_grad
    initialise_filters(model, "softmax")
    with pytest.raises(InputError, match="build the model anew"):
        initialise_filters(model, "impulse")


def test_copies_and_saved_filters_are_equal():
    model = stack()
    initialise_filters(model, "softmax", num_heads=2)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    pixels = torch.randn(1, 8, 5, 5)
    assert not torch.equal(twin(pixels), model(pixels))
    twin.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(twin(pixels), model(pixels))


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_maps_mix_places_as_the_convolution_does(kernel):
    model = stack(kernel=kernel)
    maps = filter_maps(model, 4, 6, filters=8)
    assert maps.layers == ("0", "1") and maps.values.shape == (1, 2, 8, 24, 24)
    picture = torch.randn(1, 8, 4, 6)
    for layer, conv in enumerate(model):
        mixed = torch.einsum("fqk,fk->fq", maps.values[0, layer], picture[0].flatten(1))
        torch.testing.assert_close(mixed + conv.bias[:, None], conv(picture)[0].flatten(1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: drawn_filters("tent", 2, 3), InputError, "box<b> and gau<v>"),
        (lambda: drawn_filters("box10", 2, 3), InputError, "which has 1 to 9"),
        (lambda: drawn_filters("box0", 2, 3), InputError, "which has 1 to 9"),
        (lambda: drawn_filters("gau0", 2, 3), InputError, "ask for 'impulse'"),
        (lambda: initialise_filters(stack(), "random", num_heads=3), ShapeError, "3 filters cannot share"),
        (lambda: initialise_filters(nn.Conv2d(4, 4, 3), "random"), InputError, "no depthwise convolution"),
        (lambda: filter_maps(stack(kernel=4), 4, 4), ShapeError, "square odd kernel"),
        (lambda: filter_maps(nn.Sequential(*stack(), *stack(kernel=5)), 4, 4), ShapeError, r"sides \[3, 5\]"),
        (
            lambda: filter_maps(nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1, groups=4)), 4, 4),
            ShapeError,
            r"stride \(2, 2\)",
        ),
    ],
)
def test_what_cannot_be_is_refused(call, error, said):
    with pytest.raises(error, match=said):
        call()
