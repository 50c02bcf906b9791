"""Sigma-reparametrisation against singular values, and at gamma = sigma against the plain ViT."""

import torch
import torch.nn.functional as F
from timm.utils import ModelEmaV3
from torch import nn

from attnprobe.models.variants.sigma_reparam import SigmaLinear, SigmaReparamViT
from tests.models import reference as ref


def settled(plain):
    layer = SigmaLinear.of(plain)
    for _ in range(2000):
        layer.iterate()
    return layer


def test_equals_the_equation_with_the_largest_singular_value():
    torch.manual_seed(0)
    layer, x = settled(nn.Linear(6, 4).double()), torch.randn(3, 6, dtype=torch.float64)
    with torch.no_grad():
        layer.gamma.fill_(1.7)
        weight = 1.7 * layer.weight / torch.linalg.svdvals(layer.weight)[0]
        torch.testing.assert_close(layer(x), x @ weight.T + layer.bias)


def test_gradients_are_those_of_the_singular_value():
    torch.manual_seed(0)
    layer, x = settled(nn.Linear(6, 4).double()), torch.randn(3, 6, dtype=torch.float64)
    layer(x).square().sum().backward()
    weight = layer.weight.detach().clone().requires_grad_()
    F.linear(x, weight / torch.linalg.svdvals(weight)[0], layer.bias.detach()).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, weight.grad)


def test_a_fresh_layer_knows_its_singular_value_nearly():
    torch.manual_seed(0)
    layer = SigmaLinear.of(nn.Linear(96, 288))
    sigma, exact = layer.sigma().item(), torch.linalg.svdvals(layer.weight.detach())[0].item()
    assert 0.95 * exact < sigma < exact * (1 + 1e-6)


def test_at_gamma_equal_to_sigma_it_is_the_plain_vit():
    model = SigmaReparamViT(**ref.TINY)
    layers = [m for m in model.modules() if isinstance(m, SigmaLinear)]
    assert len(layers) == 4 * 3, "qkv, proj and both layers of the MLP, in every block"
    with torch.no_grad():
        for layer in layers:
            layer.gamma.fill_(layer.sigma())
    ref.assert_is_plain(model)


def test_fused_and_explicit_paths_agree():
    ref.assert_paths_agree(ref.randomised(SigmaReparamViT(**ref.TINY)))


def test_training_follows_the_weights_and_evaluation_leaves_everything_as_it_is():
    model, pixels = SigmaReparamViT(**ref.TINY), torch.randn(2, 3, 16, 16)
    layer = model.blocks[0].mlp.fc1
    with torch.no_grad():
        layer.weight.copy_(torch.randn_like(layer.weight))
    exact = torch.linalg.svdvals(layer.weight.detach())[0]
    before = layer.u.clone()
    model.eval()(pixels)
    assert torch.equal(layer.u, before) and layer.sigma() < 0.8 * exact
    for _ in range(100):
        model.train()(pixels)
    torch.testing.assert_close(layer.sigma(), exact, rtol=1e-2, atol=0)


def test_a_moving_average_divides_by_the_singular_value_of_the_averaged_weight():
    """The mean of unit vectors is shorter than 1, here by over a tenth, and sigma would be smaller by as much."""
    torch.manual_seed(0)
    layer = settled(nn.Linear(12, 8))
    average = ModelEmaV3(layer, decay=0.99)
    u, v = F.normalize(torch.randn(8), dim=0), F.normalize(torch.randn(12), dim=0)
    with torch.no_grad():
        for _ in range(200):  # another direction grows to be the largest
            layer.weight += 0.02 * torch.outer(u, v)
            layer.iterate()
            average.update(layer)
    averaged = average.module
    assert averaged.u.norm() * averaged.v.norm() < 0.9
    exact = torch.linalg.svdvals(averaged.weight.detach())[0]
    torch.testing.assert_close(averaged.sigma(), exact, rtol=0.03, atol=0)


def test_two_forward_passes_before_one_backward_are_allowed():
    model, pixels = SigmaReparamViT(**ref.TINY).train(), torch.randn(2, 3, 16, 16)
    (model(pixels) + model(pixels)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
