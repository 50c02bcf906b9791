"""The solver against the recipe written out by hand, step by step."""

import math

import torch

from attnprobe.models.initialisers import adam
from attnprobe.models.initialisers.positions import pseudo_input, sinusoidal_positions
from attnprobe.models.initialisers.targets import ordered_offsets, shifts


def test_start_is_uniform_and_drawn_q_first():
    torch.manual_seed(0)
    q, k = adam.draw_start(2, 12, 4)
    torch.manual_seed(0)
    flat = torch.empty(2 * 2 * 12 * 4).uniform_(-1, 1) * 8**-0.5
    torch.testing.assert_close(torch.cat([q.flatten(), k.flatten()]), flat)


def by_hand(tokens, targets, q, k, steps):
    """Adam with moments and gradients of softmax and mean squared error written out, float64."""
    q, k, scale = q.clone(), k.clone(), q.shape[-1] ** -0.5
    norm = q.norm(dim=1).mean()
    moments = [torch.zeros_like(f) for f in (q, q, k, k)]
    losses = []
    for step in range(steps):
        if step % 100 == 0:
            q, k = (f / f.norm(dim=1, keepdim=True) * norm for f in (q, k))
        maps = (scale * tokens @ q @ k @ tokens.T).softmax(-1)
        losses.append((maps - targets).square().mean())
        d_maps = 2 * (maps - targets) / maps.numel()
        d_scores = scale * maps * (d_maps - (d_maps * maps).sum(-1, keepdim=True))
        gradients = (tokens.T @ d_scores @ tokens @ k.mT, q.mT @ tokens.T @ d_scores @ tokens)
        updated = []
        for i, (factor, gradient) in enumerate(zip((q, k), gradients, strict=True)):
            moments[2 * i] = 0.9 * moments[2 * i] + 0.1 * gradient
            moments[2 * i + 1] = 0.999 * moments[2 * i + 1] + 0.001 * gradient**2
            mean, square = moments[2 * i] / (1 - 0.9 ** (step + 1)), moments[2 * i + 1] / (1 - 0.999 ** (step + 1))
            updated.append(factor - 1e-4 * mean / (square.sqrt() + 1e-8))
        q, k = updated
    return q, k, torch.stack(losses)


def test_solver_equals_the_recipe_by_hand():
    torch.manual_seed(0)
    tokens = pseudo_input("P", sinusoidal_positions(3, 4, 12)).double()
    targets = shifts(3, 4, ordered_offsets(2, 3))
    q, k = (factor.double() for factor in adam.draw_start(2, 12, 6))
    solution = adam.solve(tokens, targets, q, k, steps=250)
    expected_q, expected_k, losses = by_hand(tokens, targets.double(), q, k, 250)
    torch.testing.assert_close(solution.q, expected_q, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(solution.k, expected_k, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(solution.losses.double(), losses, rtol=1e-6, atol=0)
    assert math.isclose(solution.column_norm, q.norm(dim=1).mean().item(), rel_tol=1e-6)


def test_start_and_grad_mode_are_left_alone():
    tokens, targets = torch.randn(6, 8), torch.zeros(1, 6, 6)
    q, k = adam.draw_start(1, 8, 4)
    before = q.clone()
    with torch.no_grad():
        solution = adam.solve(tokens, targets, q, k, steps=3)
    assert torch.equal(q, before) and not torch.equal(solution.q, before)
    assert not solution.q.requires_grad and not q.requires_grad


def test_autocast_around_it_changes_nothing():
    torch.manual_seed(0)
    tokens, targets, start = torch.randn(6, 8), torch.zeros(1, 6, 6), adam.draw_start(1, 8, 4)
    plain = adam.solve(tokens, targets, *start, steps=3)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(adam.solve(tokens, targets, *start, steps=3).q, plain.q)
