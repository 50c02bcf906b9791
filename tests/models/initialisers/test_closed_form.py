"""The closed form against the same algebra at full width, and what its attention reaches."""

import pytest
import torch

from attnprobe.models.initialisers import closed_form
from attnprobe.models.initialisers.positions import pseudo_input, sinusoidal_positions
from attnprobe.models.initialisers.targets import ordered_offsets, shifts


def test_small_core_equals_the_decomposition_at_full_width():
    """P^+ S P^+T, its SVD, and the norms, with the width x width matrix written out."""
    torch.manual_seed(0)
    tokens, scores = torch.randn(20, 12, dtype=torch.float64), torch.randn(2, 20, 20, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(tokens)
    pinv = vh[:5].T @ torch.diag(1 / s[:5]) @ u[:, :5].T
    q, k = closed_form.solve(closed_form.invert(tokens, 5), scores)
    for head in range(2):
        u, s, vh = torch.linalg.svd(pinv @ scores[head] @ pinv.T)
        left, right = u[:, :5] * s[:5].sqrt(), s[:5].sqrt()[:, None] * vh[:5]
        expected = (7 * left / left.norm()) @ (7 * right / right.norm())
        torch.testing.assert_close((q[head] @ k[head]).double(), expected, rtol=1e-4, atol=1e-5)
        assert q[head].norm().item() == pytest.approx(7) and k[head].norm().item() == pytest.approx(7)


def test_inverse_is_a_pseudo_inverse_where_nothing_is_cut():
    torch.manual_seed(0)
    tokens = torch.linalg.qr(torch.randn(20, 12, dtype=torch.float64))[0]
    inverse = closed_form.invert(tokens, 12)
    torch.testing.assert_close(inverse.right @ inverse.left.T, torch.linalg.pinv(tokens))


def test_wanted_scores_peak_at_targets_and_are_small_noise_elsewhere():
    torch.manual_seed(0)
    targets = shifts(6, 6, ordered_offsets(3, 3))
    scores = closed_form.wanted_scores(targets)
    assert torch.equal(scores[targets == 1], torch.full((int(targets.sum()),), 1000.0))
    elsewhere = scores[targets == 0]
    assert elsewhere.abs().max() <= 6 and elsewhere.std().item() == pytest.approx(1.8, rel=0.05)


@pytest.mark.parametrize(
    ("rows", "cols", "width", "head_width", "mass"),
    [(16, 16, 192, 64, 0.5), (8, 8, 48, 16, 0.8), (14, 14, 384, 32, 0.8), (6, 10, 96, 32, 0.5), (4, 4, 96, 16, 0.85)],
)
def test_most_attention_reaches_the_target(rows, cols, width, head_width, mass):
    torch.manual_seed(0)
    tokens = pseudo_input("P", sinusoidal_positions(rows, cols, width))
    targets = shifts(rows, cols, ordered_offsets(9, 3))
    q, k = closed_form.solve(closed_form.invert(tokens, head_width), closed_form.wanted_scores(targets))
    maps = (head_width**-0.5 * (tokens @ q) @ (k @ tokens.T)).softmax(-1)
    inside = targets.sum(-1) > 0
    assert (maps * targets).sum(-1)[inside].mean() > mass
    assert (maps.argmax(-1) == targets.argmax(-1))[inside].float().mean() > 0.95
