"""Parts of a map are put where the model puts their results, and maps whose results are added up are not parts."""

import pytest
import torch
from torch.nn import functional as F

import attnprobe as ap
from attnprobe.capturing import certify
from attnprobe.core.errors import CaptureError
from tests.capturing.test_layouts import PIXELS, captured, maps_by_hand, soft, vit

BACKWARDS = (slice(12, 17), slice(5, 12), slice(0, 5))


def written(s, q, k, v, indices, attend=None):
    out = torch.empty_like(q)
    for index in indices:
        out[:, :, index] = soft(q[:, :, index], k) @ v if attend is None else attend(q[:, :, index], k, v)
    return out


def tokens_first(s, q, k, v):
    out = q.new_zeros(len(q), 17, 48)
    for at in BACKWARDS:
        out[:, at] = (soft(q[:, :, at], k) @ v).transpose(1, 2).flatten(2)
    return out.unflatten(2, (3, -1)).transpose(1, 2)


def heads_written(s, q, k, v, heads):
    out = torch.empty_like(q)
    for h in heads:
        out[:, h] = soft(q[:, h], k[:, h]) @ v[:, h]
    return out


def heads_in_channels(s, q, k, v):
    out = q.new_empty(len(q), 17, 48)
    for h in (1, 2, 0):
        out[..., 16 * h : 16 * h + 16] = F.scaled_dot_product_attention(q[:, h], k[:, h], v[:, h], scale=1.0)
    return out.unflatten(2, (3, -1)).transpose(1, 2)


def joined_backwards(s, q, k, v):
    parts = [soft(q[:, :, at], k) @ v for at in BACKWARDS]
    return torch.cat([*parts[::-1]], 2)


def heads_stacked_backwards(s, q, k, v):
    return torch.stack([soft(q[:, h], k[:, h]) @ v[:, h] for h in (2, 1, 0)][::-1], 1)


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)


PARTS = {
    "strided queries": lambda s, q, k, v: written(s, q, k, v, [slice(i, None, 3) for i in (1, 0, 2)]),
    "queries backwards": lambda s, q, k, v: written(s, q, k, v, BACKWARDS),
    "queries backwards, fused": lambda s, q, k, v: written(s, q, k, v, BACKWARDS, fused),
    "queries by lists": lambda s, q, k, v: written(s, q, k, v, [[16, *range(0, 15, 2)], [*range(1, 16, 2)]]),
    "queries by tensors": lambda s, q, k, v: written(s, q, k, v, torch.arange(17).flip(0).split(6)),
    "queries in order": lambda s, q, k, v: written(s, q, k, v, BACKWARDS[::-1]),
    "queries backwards, tokens first": tokens_first,
    "queries joined backwards": joined_backwards,
    "a copy of V for each chunk": lambda s, q, k, v: torch.cat([soft(c, k) @ v.clone() for c in q.split(6, 2)], 2),
    "heads backwards": lambda s, q, k, v: heads_written(s, q, k, v, (2, 1, 0)),
    "heads in order": lambda s, q, k, v: heads_written(s, q, k, v, (0, 1, 2)),
    "heads as channels": heads_in_channels,
    "heads stacked backwards": heads_stacked_backwards,
}


@pytest.mark.parametrize("name", PARTS)
def test_rows_and_heads_stand_where_the_model_writes_what_they_read(name):
    model = vit(PARTS[name])
    torch.testing.assert_close(captured(model, "weights"), maps_by_hand(model), rtol=0, atol=1e-6)


BY_HAND = [name for name in PARTS if name not in ("queries backwards, fused", "heads as channels")]
"""Those whose scores are no fused call's, which other tests cover."""


@pytest.mark.parametrize("name", BY_HAND)
def test_parts_in_any_order_keep_their_products_and_their_scores(name):
    model = vit(PARTS[name])
    scores = maps_by_hand(model, lambda x: x)
    torch.testing.assert_close(captured(model, "scores"), scores, rtol=0, atol=1e-5)
    assert all(layer.value_error < 1e-5 for layer in certify(model, PIXELS).layers)


def scattered(s, q, k, v):
    out = torch.zeros_like(q)
    for at in torch.arange(17).flip(0).split(6):
        out = out.index_copy(2, at, soft(q[:, :, at], k) @ v)
    return out


def over_each_other(s, q, k, v):
    return written(s, q, k, v, (slice(0, 10), slice(7, 17)))


@pytest.mark.parametrize("mix", [scattered, over_each_other])
def test_parts_that_cannot_be_followed_to_their_places_are_refused(mix):
    with pytest.raises(CaptureError, match="multiplies V in 2 parts|multiplies V in 3 parts"):
        captured(vit(mix), "weights")


def minus(s, q, k, v):
    return soft(q, k) @ v - 0.3 * soft(k, q) @ v


def in_place(s, q, k, v):
    out = fused(q, k, v)
    out -= 0.3 * fused(k, q, v)
    return out


def stacked(s, q, k, v):
    both = torch.stack([soft(q, k) @ v, soft(k, q) @ v])
    return both[0] - 0.3 * both[1]


SUMS = {
    "minus": minus,
    "stacked": stacked,
    "lerp": lambda s, q, k, v: torch.lerp(fused(q, k, v), fused(k, q, v), 0.3),
    "three": lambda s, q, k, v: sum((fused(q, k, v), fused(k, q, v), fused(q, q, v))),
}


@pytest.mark.parametrize("mix", SUMS.values(), ids=SUMS)
def test_maps_whose_results_are_added_up_are_not_effective(mix):
    model = vit(mix, depth=2)
    with pytest.raises(CaptureError, match="none of its maps alone is effective; capture site='weights'"):
        captured(model)
    both = list(ap.capture(model, PIXELS, ("weights", "effective")))
    assert [(maps.site, maps.is_effective, maps.stochastic) for maps in both] == [("weights", False, True)]
    wanted = maps_by_hand(model)
    torch.testing.assert_close(both[0].values[:, :, :3], wanted, rtol=0, atol=1e-6)


def test_results_that_are_added_up_in_place_are_refused():
    with pytest.raises(CaptureError, match="its attention is not the captured matrix"):
        captured(vit(in_place, depth=2), "weights")


def test_results_that_are_added_to_something_else_stay_effective():
    model = vit(lambda s, q, k, v: torch.cat([soft(c, k) @ v + 0.5 for c in q.split(6, 2)], 2) + v)
    (maps,) = ap.capture(model, PIXELS, ("weights", "effective"))
    assert maps.is_effective
    torch.testing.assert_close(maps.values, maps_by_hand(model), rtol=0, atol=1e-6)


def watched(s, q, k, v):
    """Attention whose result is looked at in the ways that training code looks at activations."""
    out = soft(q, k) @ v
    s.seen = [
        (out - v).abs().max() / out.abs().max().clamp_min(1e-12), out.norm() / out.numel() ** 0.5, out.max(-1),
        out.flatten()[0] / 2, out.sum((0, 1, 2, 3)) * 3, (out.mean() / out.std()).item(),
        torch.div(out.amax(), 2), out[..., 0] / out[..., 1], torch.stack([out.mean(), out.std()]), out.isnan().any(),
    ]  # fmt: skip
    return out


def test_a_layer_that_looks_at_its_result_is_captured_as_one_that_does_not():
    model = vit(watched)
    torch.testing.assert_close(captured(model, "weights"), maps_by_hand(model), rtol=0, atol=1e-6)
