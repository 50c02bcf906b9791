"""Flex attention: scores changed by a function of their position, and masked by one, give the maps of the equation."""

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

import attnprobe as ap
from tests.capturing.test_layouts import captured, maps_by_hand, vit

TOKENS = torch.arange(17)
FAR = (TOKENS[:, None] - TOKENS).abs()
SLOPES = torch.tensor([0.1, 0.2, 0.4])


def band():
    return create_block_mask(lambda b, h, q, k: (q - k).abs() < 5, None, None, 17, 17, device="cpu")


CASES = {
    "plain": (lambda: {}, lambda s: s),
    "distances": (lambda: {"score_mod": lambda s, b, h, q, k: s - 0.1 * (q - k).abs()}, lambda s: s - 0.1 * FAR),
    "a slope a head": (
        lambda: {"score_mod": lambda s, b, h, q, k: s - SLOPES[h] * (q - k).abs()},
        lambda s: s - SLOPES[:, None, None] * FAR,
    ),
    "a band": (lambda: {"block_mask": band()}, lambda s: s.masked_fill(FAR >= 5, -torch.inf)),
    "both": (
        lambda: {"score_mod": lambda s, b, h, q, k: s * 2, "block_mask": band()},
        lambda s: (2 * s).masked_fill(FAR >= 5, -torch.inf),
    ),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", CASES)
def test_flex_attention_is_read(name):
    options, of = CASES[name]
    given = options()
    model = vit(lambda s, q, k, v: flex_attention(q, k, v, scale=1.0, **given))
    torch.testing.assert_close(
        captured(model, "weights"), maps_by_hand(model, lambda s: of(s).softmax(-1)), rtol=0, atol=1e-6
    )


@pytest.mark.filterwarnings("ignore")
def test_scores_of_flex_attention_are_those_of_its_softmax():
    model = vit(lambda s, q, k, v: flex_attention(q, k, v, scale=1.0, block_mask=band()))
    wanted = maps_by_hand(model, lambda s: s.masked_fill(FAR >= 5, -torch.inf))
    torch.testing.assert_close(captured(model, "scores"), wanted, rtol=0, atol=1e-5)
    assert ap.capture(model, torch.randn(2, 3, 32, 32)).certificate.output_equal
