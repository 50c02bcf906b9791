"""The attention of unknown code is found wherever PyTorch computes it, and never silently missed."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from attnprobe.capturing import capture, certify, record
from attnprobe.capturing.axes import Known, Layout, scores_of, softmax_of
from attnprobe.core.errors import CaptureError
from tests.capturing.oracle import no_trace

HEADS, WIDTH = 2, 8


class Written(nn.Module):
    """Attention as anybody may write it; `way` is how it multiplies with V."""

    def __init__(self, way):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.mix = nn.Parameter(torch.eye(HEADS) + 0.1)
        self.way = way
        if way != "heads unnamed":
            self.num_heads = HEADS

    def split(self, x):
        return self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)

    def weights(self, q, k):
        return (q @ k.mT / math.sqrt(q.shape[-1])).softmax(-1)

    def multiply(self, x):
        q, k, v = self.split(x)
        if self.way == "fused":
            return F.scaled_dot_product_attention(q, k, v)
        if self.way == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k) / math.sqrt(q.shape[-1])
            return torch.einsum("b h i j, b h j d -> b h i d", scores.softmax(dim=-1), v)
        if self.way == "einsum, tokens first":
            q, k, v = (t.permute(0, 2, 1, 3) for t in (q, k, v))
            scores = torch.einsum("...ihd,...jhd->...hij", q, k) / math.sqrt(q.shape[-1])
            return torch.einsum("...jhd,...hij->...ihd", v, F.softmax(scores, -1)).transpose(1, 2)
        weights = self.weights(q, k)
        if self.way == "bmm":
            return torch.bmm(weights.flatten(0, 1), v.flatten(0, 1)).unflatten(0, (-1, HEADS))
        if self.way == "transposed":
            return (v.mT @ weights.mT).mT
        if self.way == "written in place":
            weights *= 0.5
            weights[..., 0] = 0
            return weights @ v
        if self.way == "talking heads":
            mixed = F.linear(weights.permute(0, 2, 3, 1), self.mix).permute(0, 3, 1, 2)
            return F.dropout(mixed, training=False).contiguous() @ v
        if self.way == "renormalised":
            weights = weights + 0.1
            weights = weights / weights.sum(-1, keepdim=True)
            return torch.matmul(weights, v)
        return weights @ v

    def effective(self, x):
        """What multiplies V, written a second time in float64."""
        q, k, _ = self.split(x).double()
        weights = torch.exp(q @ k.mT / math.sqrt(q.shape[-1]))
        weights = weights / weights.sum(-1, keepdim=True)
        if self.way == "written in place":
            return weights, torch.cat([torch.zeros_like(weights[..., :1]), weights[..., 1:] * 0.5], -1)
        if self.way == "talking heads":
            return weights, torch.einsum("gh,bhij->bgij", self.mix.double(), weights)
        if self.way == "renormalised":
            return weights, (weights + 0.1) / (weights + 0.1).sum(-1, keepdim=True)
        return weights, weights

    def forward(self, x):
        return self.multiply(x).transpose(1, 2).flatten(2)


class Model(nn.Module):
    """A stem, some layers, logits."""

    def __init__(self, *layers):
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, 4)
        self.cls_token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.layers = nn.ModuleList(layers)
        self.head = nn.Linear(WIDTH, 3)

    def embed(self, pixels):
        return torch.cat([self.cls_token.expand(len(pixels), -1, -1), self.stem(pixels).flatten(2).mT], 1)

    def forward(self, pixels):
        x = self.embed(pixels)
        for layer in self.layers:
            out = layer(x, x, x, need_weights=False) if isinstance(layer, nn.MultiheadAttention) else layer(x)
            x = x + (out[0] if isinstance(out, tuple) else out)
        return self.head(x[:, 0])


WAYS = ("matmul", "fused", "einsum", "einsum, tokens first", "bmm", "transposed", "heads unnamed", "written in place")
MIXING_WAYS = ("talking heads", "renormalised")


@pytest.fixture
def pixels():
    torch.manual_seed(0)
    return torch.randn(3, 3, 8, 12)


@pytest.mark.parametrize("way", WAYS + MIXING_WAYS)
def test_maps_equal_the_formula_however_the_product_is_written(way, pixels):
    model = Model(Written(way), Written(way)).eval()
    with torch.inference_mode():
        before = model(pixels)
        with no_trace(model), record(model, ("weights", "effective")) as recorder:
            assert torch.equal(model(pixels), before)
            taken = recorder.take()
        weights, effective = model.layers[0].effective(model.embed(pixels))
    differs = not torch.equal(weights, effective)
    assert [(m.site, m.stage, m.kind, m.is_effective) for m in taken] == (
        [("weights", "trunk", "self", not differs)] + [("effective", "trunk", "self", True)] * differs
    )
    torch.testing.assert_close(taken[0].values[:, 0], weights.float())
    torch.testing.assert_close(taken[-1].values[:, 0], effective.float())
    assert taken[0].layers == ("layers.0", "layers.1")
    assert (taken[0].grid.rows, taken[0].grid.cols, taken[0].grid.prefix) == (2, 3, ("cls",))
    assert all(layer.value_error < 1e-5 for layer in certify(model, pixels).layers)


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_multihead_attention_modules_are_asked_for_their_heads(batch_first, bias, pixels):
    class Other(Model):
        def forward(self, pixels):
            x = self.embed(pixels)
            x = x if batch_first else x.transpose(0, 1)
            out = self.layers[0](x, x, x, need_weights=False)[0]
            return self.head((out if batch_first else out.transpose(0, 1))[:, 0])

    layer = nn.MultiheadAttention(WIDTH, HEADS, batch_first=batch_first, bias=bias)
    model = Other(layer).eval()
    (maps,) = next(capture(model, pixels).batches())
    x = model.embed(pixels)
    q, k = F.linear(x, layer.in_proj_weight, layer.in_proj_bias).chunk(3, -1)[:2]
    q, k = (t.unflatten(-1, (HEADS, -1)).transpose(1, 2) for t in (q, k))
    torch.testing.assert_close(maps.values[:, 0], (q @ k.mT / math.sqrt(WIDTH / HEADS)).softmax(-1))
    (proof,) = certify(model, pixels).layers
    assert proof.route == "mha" and proof.value_error < 1e-5


@pytest.mark.parametrize(("causal", "mask"), [(True, None), (False, None), (False, "bool"), (False, "float")])
@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_the_softmax_of_a_fused_call_gives_its_output(causal, mask, kv_heads):
    torch.manual_seed(0)
    q = torch.randn(2, 4, 5, 3, dtype=torch.float64)
    k, v = torch.randn(2, 2, kv_heads, 6, 3, dtype=torch.float64).unbind(0)
    given = None
    if mask:
        seen = torch.rand(2, 1, 5, 6) > 0.4
        seen[0, 0, 2] = False  # a query that may look nowhere
        given = seen if mask == "bool" else torch.zeros(2, 1, 5, 6, dtype=torch.float64).masked_fill(~seen, -torch.inf)
    expected = F.scaled_dot_product_attention(q, k, v, given, is_causal=causal, scale=0.7, enable_gqa=True)
    weights = softmax_of(scores_of(q, k, given, is_causal=causal, scale=0.7))
    torch.testing.assert_close(weights @ v.repeat_interleave(4 // kv_heads, 1), expected)


def test_half_precision_is_recomputed_in_float32():
    q, k = torch.randn(2, 1, 1, 4, 8, dtype=torch.bfloat16).unbind(0)
    weights = softmax_of(scores_of(q, k))
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 1, 4))


def unfolded(matrix, n_images, heads, given=None):
    layout = Layout.of(matrix.shape, n_images, Known(heads, given))
    return None if layout is None else layout.unfold(matrix)


def test_axes_are_told_apart_by_the_number_of_heads():
    values = torch.arange(2 * 3 * 4 * 5 * 6).view(2, 3, 4, 5, 6)  # [image, window, head, query, key]
    for written in (values, values.flatten(0, 1), values.flatten(0, 2), values.transpose(1, 2)):
        assert torch.equal(unfolded(written, 2, heads=4), values)
    assert torch.equal(unfolded(values.flatten(0, 1), 2, heads=None), values)
    assert torch.equal(unfolded(values[:, 0], 2, heads=4), values[:, :1])
    assert torch.equal(unfolded(values[:, 0, 0], 2, heads=1), values[:, :1, :1])
    alone = values[:, :, 0].flatten(0, 1)
    assert torch.equal(unfolded(alone, 2, heads=3, given=6), values[:, :, :1])
    assert unfolded(values, 3, heads=4) is None


class HiddenAttention(nn.Module):
    """Queries, keys and values, and a kernel of its own."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        weights = np.exp((q @ k.mT).numpy())  # out of PyTorch's sight, as in a compiled extension
        return torch.from_numpy(weights / weights.sum(-1, keepdims=True) @ v.numpy())


def test_a_kernel_that_nobody_sees_is_an_error_that_names_the_layer(pixels):
    model = Model(Written("matmul"), HiddenAttention()).eval()
    with pytest.raises(CaptureError, match=r"layers.1 \(HiddenAttention\) ran.*attn_implementation"):
        next(iter(capture(model, pixels)))


def test_no_attention_is_an_error(pixels):
    with pytest.raises(CaptureError, match="no attention layer found in Model"):
        next(iter(capture(Model(nn.Linear(WIDTH, WIDTH)).eval(), pixels)))
    with record(Model(Written("matmul"))) as recorder, pytest.raises(CaptureError, match="has not run yet"):
        recorder.take()


def test_hooks_are_gone_after_an_exception(pixels):
    model = Model(Written("fused")).eval()
    with no_trace(model), pytest.raises(RuntimeError), record(model):
        model(pixels[:, :2])
    with torch.inference_mode(), record(model) as recorder:
        model(pixels)
        assert len(recorder.take()) == 1


def test_two_passes_without_take_are_an_error_and_a_shared_layer_is_not(pixels):
    shared = Written("matmul")
    model = Model(shared, shared).eval()
    with torch.inference_mode(), record(model) as recorder:
        model(pixels)
        (maps,) = recorder.take()
        assert maps.layers == ("layers.0", "layers.0#2")
        model(pixels)
        with pytest.raises(CaptureError, match="layers.0 ran twice"):
            model(pixels)


def test_one_map_made_of_two_softmaxes_has_no_weights(pixels):
    class Differential(Written):
        def multiply(self, x):
            q, k, v = self.split(x)
            return self.difference(q, k) @ v

        def difference(self, q, k):
            if self.way == "two calls":
                return self.weights(q[..., ::2], k[..., ::2]) - 0.5 * self.weights(q[..., 1::2], k[..., 1::2])
            pairs = self.weights(*(torch.cat([t[..., ::2], t[..., 1::2]], 1) for t in (q, k)))
            return pairs[:, :HEADS] - 0.5 * pairs[:, HEADS:]

    for way in ("two calls", "one call"):
        model = Model(Differential(way)).eval()
        with torch.inference_mode(), record(model, ("weights", "effective")) as recorder:
            model(pixels)
            (maps,) = recorder.take()
            q, k, _ = model.layers[0].split(model.embed(pixels))
        assert (maps.site, maps.is_effective, maps.stochastic) == ("effective", True, False)
        torch.testing.assert_close(maps.values[:, 0], model.layers[0].difference(q, k))
        with torch.inference_mode(), record(model, "weights") as recorder:
            model(pixels)
            with pytest.raises(CaptureError, match="several softmaxes.*site='effective'"):
                recorder.take()
        assert certify(model, pixels).layers[0].row_sum_error is None


def test_tokens_are_the_output_of_the_block(pixels):
    model = Model(Written("fused"), Written("einsum")).eval()
    blocks = nn.ModuleList(nn.Sequential(layer) for layer in model.layers)
    model.layers = blocks
    with torch.inference_mode(), record(model, tokens=True) as recorder:
        model(pixels)
        (maps,) = recorder.take()
        x = model.embed(pixels)
        first = blocks[0](x)
    torch.testing.assert_close(maps.tokens[:, 0], first)
    torch.testing.assert_close(maps.tokens[:, 1], blocks[1](x + first))


def test_a_model_with_known_and_unknown_layers_gives_both():
    from attnprobe.models import build_model

    class ClassAttention(nn.Module):
        """Attention of the class token alone to all tokens, without a tap."""

        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(12, 36)

        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, 3, 4)).permute(2, 0, 3, 1, 4)
            read = F.scaled_dot_product_attention(q[:, :, :1], k, v)
            return torch.cat([read.transpose(1, 2).flatten(2), x[:, 1:]], dim=1)

    tiny = {"img_size": 16, "patch_size": 8, "embed_dim": 12, "num_heads": 3, "depth": 2, "num_classes": 4}
    model = build_model("refiner_16_digits", seed=0, **tiny).eval()
    model.norm = nn.Sequential(ClassAttention(), model.norm)
    proof = certify(model, torch.randn(2, 3, 16, 16))
    assert {layer.route for layer in proof.layers} == {"taps", "functional"}
    trunk, *_, last = next(capture(model, torch.randn(2, 3, 16, 16), ("weights", "effective")).batches())
    assert (trunk.stage, trunk.kind, last.stage, last.kind) == ("trunk", "self", "class", "class")
    assert last.values.shape == (2, 1, 3, 1, 5) and last.grid.prefix == ("cls",)
