"""Class attention against loops: one query, the class token."""

import math

import pytest
import torch

from attnprobe.models.class_attention import ClassAttention, ClassBlock
from tests.models.remedies import randomised, tokens


@pytest.mark.parametrize("head_dim", [None, 5])
def test_the_class_token_alone_reads_all_tokens(head_dim):
    layer, x = randomised(ClassAttention(12, 3, head_dim, qkv_bias=True)), tokens(12)
    p = head_dim or 4
    with torch.no_grad():
        q, kv = x[:, 0] @ layer.q.weight.T + layer.q.bias, x @ layer.kv.weight.T + layer.kv.bias
        read = torch.zeros(2, 3 * p, dtype=x.dtype)
        for i in range(2):
            for h in range(3):
                own = slice(h * p, (h + 1) * p)
                scores = [math.exp(float(q[i, own] @ kv[i, t, own]) / math.sqrt(p)) for t in range(5)]
                v = kv[i, :, 3 * p :][:, own]
                read[i, own] = sum(s / sum(scores) * v[t] for t, s in enumerate(scores))
        torch.testing.assert_close(layer(x), (read @ layer.proj.weight.T + layer.proj.bias)[:, None])


def test_a_block_updates_the_class_token_and_nothing_else():
    block, x = randomised(ClassBlock(12, 3, mlp_ratio=2, qkv_bias=True)), tokens(12)
    with torch.no_grad():
        out = block(x)
        token = x[:, :1] + block.attn(block.norm1(x))
        torch.testing.assert_close(out[:, :1], token + block.mlp(block.norm2(token)))
    assert torch.equal(out[:, 1:], x[:, 1:])


def test_parameter_names_are_those_of_refiners_code():
    names = set(ClassBlock(12, 3, qkv_bias=True).state_dict())
    layers = ("attn.q", "attn.kv", "attn.proj", "norm1", "norm2", "mlp.fc1", "mlp.fc2")
    assert names == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
