"""The regulariser against loops written from the formula."""

import math
from itertools import pairwise

import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.models import build_model
from attnprobe.training.cosine_regulariser import cosine_penalty, listening


def loop_cosine(a, b):
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(float(x) ** 2 for x in a) * sum(float(y) ** 2 for y in b))


@pytest.mark.parametrize("dim", ["head", "key"])
def test_penalty_equals_the_formula(dim):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(2, 3, 4, 4, generator=generator) for _ in range(4)]
    total, count = 0.0, 0
    for first, second in pairwise(maps):
        for image in range(2):
            if dim == "head":
                vectors = [((image, slice(None), q, k)) for q in range(4) for k in range(4)]
            else:
                vectors = [((image, h, slice(None), k)) for h in range(3) for k in range(4)]
            for where in vectors:
                total += loop_cosine(first[where], second[where])
                count += 1
    assert cosine_penalty(maps, dim).item() == pytest.approx(total / count, rel=1e-5)


def test_equal_layers_cost_one_and_opposite_ones_minus_one():
    a = torch.rand(1, 2, 3, 3) + 0.1
    assert cosine_penalty([a, a]).item() == pytest.approx(1)
    assert cosine_penalty([a, -a], "key").item() == pytest.approx(-1)


@pytest.mark.parametrize("name", ["vit_16_digits", "deepvit_16_digits", "refiner_16_digits"])
def test_maps_are_those_that_multiply_v_and_carry_gradients(name):
    model = build_model(name, num_classes=3, depth=3, seed=0)
    pixels = torch.randn(2, 3, 32, 32)
    with listening(model, 3) as listener:
        model(pixels)
        maps = listener.take()
    assert [tuple(m.shape) for m in maps] == [(2, 6, 17, 17)] * 3
    cosine_penalty(maps).backward()
    assert model.blocks[0].attn.qkv.weight.grad.abs().sum() > 0
    if name == "deepvit_16_digits":  # its post-norm map, not the softmax
        assert maps[1].min() < 0 and not torch.allclose(maps[1].sum(-1), torch.ones(()))


def test_a_step_along_the_gradient_lowers_the_similarity():
    model = build_model("deepvit_16_digits", num_classes=3, depth=4, seed=0)
    pixels = torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    costs = []
    with listening(model, 4) as listener:
        for _ in range(5):
            model(pixels)
            cost = cosine_penalty(listener.take(), "key")
            optimizer.zero_grad()
            cost.backward()
            optimizer.step()
            costs.append(cost.item())
    assert costs[-1] < costs[0]


def test_layers_are_as_before_afterwards():
    model = build_model("vit_16_digits", num_classes=3, depth=2)
    before = [block.attn.fused_attn for block in model.blocks]
    with listening(model, 2), pytest.raises(ZeroDivisionError):
        raise ZeroDivisionError
    assert [block.attn.fused_attn for block in model.blocks] == before
    assert not any(module._forward_hooks for module in model.modules())


def test_more_layers_than_there_are_is_an_error():
    with pytest.raises(InputError, match="has 2 whose maps"), listening(build_model("vit_16_digits", depth=2), 3):
        pass
