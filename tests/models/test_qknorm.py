"""QK-norm against the equation."""

import torch

from attnprobe.models.variants.qknorm import QKNORM
from tests.models.remedies import TINY, assert_paths_agree, heads_of, loop_softmax, project, randomised, tokens


def loop_norm(norm, x):
    mean = x.mean(-1, keepdim=True)
    return (x - mean) / ((x - mean).square().mean(-1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias


def test_both_paths_equal_the_equation():
    layer, x = randomised(QKNORM.model(**TINY, **QKNORM.options)).blocks[0].attn, tokens()
    for layer.fused_attn in (True, False):
        with torch.no_grad():
            q, k = loop_norm(layer.q_norm, heads_of(layer, x, 0)), loop_norm(layer.k_norm, heads_of(layer, x, 1))
            a = loop_softmax(q @ k.mT / layer.head_dim**0.5)
            torch.testing.assert_close(layer(x), project(layer, a @ heads_of(layer, x, 2)))


def test_fused_and_explicit_paths_agree():
    assert_paths_agree(randomised(QKNORM.model(**TINY, **QKNORM.options)))


def test_scores_do_not_grow_with_queries_and_keys():
    layer, x = randomised(QKNORM.model(**TINY, **QKNORM.options)).blocks[0].attn, tokens()
    with torch.no_grad():
        before = layer(x)
        layer.qkv.weight[:32] *= 1000
        layer.qkv.bias[:32] *= 1000
        torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-4)  # up to the norm's eps
