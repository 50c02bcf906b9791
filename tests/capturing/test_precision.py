"""Each layer is proved with the tolerance of the precision it computes in, wherever that is chosen."""

from contextlib import nullcontext

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attnprobe.capturing import capture

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
WIDTH, HEADS = 24, 3


class Attention(nn.Module):
    """Self-attention that may cast q, k and v."""

    num_heads = HEADS

    def __init__(self, dtype=None):
        super().__init__()
        self.qkv, self.dtype = nn.Linear(WIDTH, 3 * WIDTH), dtype

    def forward(self, t):
        q, k, v = (
            x.unflatten(-1, (HEADS, -1)).transpose(1, 2).to(self.dtype or t.dtype) for x in self.qkv(t).chunk(3, -1)
        )
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2).to(t.dtype)


class MultiHead(nn.MultiheadAttention):
    def __init__(self):
        super().__init__(WIDTH, HEADS, batch_first=True)

    def forward(self, t):
        return super().forward(t, t, t, need_weights=False)[0]


class Net(nn.Module):
    """Blocks of attention below a float32 head, under autocast or not."""

    def __init__(self, *attention, autocast=None):
        super().__init__()
        self.steps = nn.Parameter(torch.arange(4), requires_grad=False)  # the first parameter is of whole numbers
        self.embed, self.head = nn.Conv2d(3, WIDTH, 8, 8), nn.Linear(WIDTH, 5)
        self.blocks, self.autocast = nn.ModuleList(attention), autocast

    def forward(self, x):
        t = self.embed(x).flatten(2).transpose(1, 2)
        with torch.autocast("cpu", dtype=self.autocast) if self.autocast else nullcontext():
            for block in self.blocks:
                t = t + block(t)
        return self.head(t.float().mean(1))


def softmax_of(attention, t):
    """The map by its equation, from the layer's weights, in float64."""
    weight, bias = (
        (attention.qkv.weight, attention.qkv.bias)
        if isinstance(attention, Attention)
        else (attention.in_proj_weight, attention.in_proj_bias)
    )
    q, k, _ = (t.double() @ weight.double().mT + bias.double()).chunk(3, -1)
    q, k = (x.unflatten(-1, (HEADS, -1)).transpose(1, 2) for x in (q, k))
    return (q @ k.mT * (WIDTH / HEADS) ** -0.5).softmax(-1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_multi_head_attention_under_autocast_is_its_softmax_within_that_precision(dtype):
    torch.manual_seed(0)
    model = Net(MultiHead(), MultiHead(), autocast=dtype).eval()
    capturing = capture(model, X)
    (maps,) = capturing
    tokens = model.embed(X).flatten(2).transpose(1, 2)
    expected = softmax_of(model.blocks[0], tokens)
    torch.testing.assert_close(maps.values[:, 0].double(), expected, rtol=0, atol=torch.finfo(dtype).eps * 2)
    assert all(0 < layer.value_error < 10 * torch.finfo(dtype).eps for layer in capturing.certificate.layers)


def test_one_layer_of_low_precision_leaves_the_others_their_own():
    torch.manual_seed(0)
    model = Net(Attention(), Attention(torch.bfloat16), Attention()).eval()
    first, second, third = (layer.value_error for layer in capture(model, X).certificate.layers)
    assert max(first, third) < 1e-5 < 1e-3 < second < 5e-2


def test_pixels_keep_their_precision_where_the_first_parameter_has_none():
    torch.manual_seed(0)
    model = Net(Attention()).eval()
    (maps,) = capture(model, X)
    tokens = model.embed(X).flatten(2).transpose(1, 2)
    torch.testing.assert_close(maps.values[:, 0].double(), softmax_of(model.blocks[0], tokens), rtol=0, atol=1e-6)


def test_under_autocast_maps_are_the_softmax_in_that_precision_and_proved_so():
    """As if the model itself ran under it; nothing of it stays on afterwards."""
    torch.manual_seed(0)
    model = Net(MultiHead(), Attention()).eval()
    capturing = capture(model, X, amp=torch.bfloat16)
    (maps,) = capturing
    (exact,) = capture(model, X)
    assert 0 < (maps.values.float() - exact.values).abs().max() < 4 * torch.finfo(torch.bfloat16).eps
    assert capturing.certificate.output_equal
    assert not torch.is_autocast_enabled("cpu")
    model.autocast = torch.bfloat16
    (inside,) = capture(model, X)
    torch.testing.assert_close(maps.values[:, 0], inside.values[:, 0], rtol=0, atol=torch.finfo(torch.bfloat16).eps)
