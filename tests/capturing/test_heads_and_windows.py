"""Heads that share V are heads, windows are windows, and where the two cannot be told apart nothing is read."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import attnprobe as ap
from attnprobe.core.errors import CaptureError
from tests.capturing.test_layouts import PIXELS, Attention, ViT

HEADS, GROUPS = 4, 2


def grouped(q):
    return q.unflatten(1, (GROUPS, -1))


def weigh(scores, equation, v):
    return torch.einsum(equation, scores.softmax(-1), v)


def tokens_first(s, q, k, v):
    maps = torch.einsum("bkgnd,bkmd->bnkgm", grouped(q), k[:, :GROUPS]).softmax(-1)
    return torch.einsum("bnkgm,bkmd->bkgnd", maps, v[:, :GROUPS]).flatten(1, 2)


def changed(s, q, k, v):
    maps = torch.einsum("bkgnd,bkmd->bkgnm", grouped(q), k[:, :GROUPS]).softmax(-1)
    return torch.einsum("bkmd,bkgnm->bkgnd", v[:, :GROUPS], maps.clone()).flatten(1, 2)


GROUPED = {
    "fused": lambda s, q, k, v: F.scaled_dot_product_attention(
        q, k[:, :GROUPS], v[:, :GROUPS], scale=1.0, enable_gqa=True
    ),
    "five axes": lambda s, q, k, v: ((grouped(q) @ k[:, :GROUPS, None].mT).softmax(-1) @ v[:, :GROUPS, None]).flatten(
        1, 2
    ),
    "einsum": lambda s, q, k, v: weigh(
        torch.einsum("bkgnd,bkmd->bkgnm", grouped(q), k[:, :GROUPS]), "bkgnm,bkmd->bkgnd", v[:, :GROUPS]
    ).flatten(1, 2),
    "einsum, V first and a copied map": changed,
    "einsum, tokens first": tokens_first,
    "einsum with an ellipsis": lambda s, q, k, v: weigh(
        torch.einsum("...gnd,...md->...gnm", grouped(q), k[:, :GROUPS]), "...gnm,...md->...gnd", v[:, :GROUPS]
    ).flatten(1, 2),
}

MULTI_QUERY = {
    "four axes": lambda s, q, k, v: (q @ k[:, :1].mT).softmax(-1) @ v[:, :1],
    "einsum": lambda s, q, k, v: weigh(torch.einsum("bhnd,bmd->bhnm", q, k[:, 0]), "bhnm,bmd->bhnd", v[:, 0]),
    "einsum, tokens before heads": lambda s, q, k, v: weigh(
        torch.einsum("bhnd,bmd->bnhm", q, k[:, 0]), "bnhm,bmd->bnhd", v[:, 0]
    ).transpose(1, 2),
}


def model_of(mix, states=True, side=32):
    def attention(_):
        made = Attention(mix, heads=HEADS)
        if not states:
            made.split = lambda x: split(made, x)
            del made.num_heads
        return made

    return ViT(attention, depth=2, side=side).eval()


def split(module, x):
    q, k, v = module.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    return q * q.shape[-1] ** -0.5, k, v


def maps_of_first(model, shared):
    """[image, head, query, key] of the first block, where `shared` heads follow one another with one head of K."""
    given = []
    hook = model.blocks[0].register_forward_pre_hook(lambda _m, args: given.append(args[0]))
    with torch.no_grad():
        model(PIXELS)
        hook.remove()
        q, k, _ = split(model.blocks[0], given[0])
        return torch.stack([(q[:, h] @ k[:, h // shared].mT).softmax(-1) for h in range(HEADS)], 1)


@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize(
    ("mix", "shared"),
    [(mix, HEADS // GROUPS) for mix in GROUPED.values()] + [(mix, HEADS) for mix in MULTI_QUERY.values()],
    ids=[*(f"grouped, {name}" for name in GROUPED), *(f"multi-query, {name}" for name in MULTI_QUERY)],
)
def test_heads_that_share_keys_and_values_are_heads(mix, shared, states):
    model = model_of(mix, states)
    (maps,) = ap.capture(model, PIXELS, "weights")
    assert (maps.kind, maps.values.shape) == ("self", (4, 2, HEADS, 17, 17)) and maps.is_effective
    torch.testing.assert_close(maps.values[:, 0], maps_of_first(model, shared), rtol=0, atol=1e-6)


def test_queries_in_rows_and_columns_that_share_keys_are_queries():
    def in_rows(s, q, k, v):
        maps = torch.einsum("bhxyd,bhmd->bhxym", q.unflatten(2, (4, 4)), k).softmax(-1)
        return torch.einsum("bhxym,bhmd->bhxyd", maps, v).flatten(2, 3)

    model = Windowed(lambda _: Attention(in_rows, heads=HEADS), depth=2).eval()
    (maps,) = ap.capture(model, PIXELS, "weights")
    torch.testing.assert_close(maps.values[:, 0], maps_of_first(model, 1), rtol=0, atol=1e-6)


def test_queries_as_many_as_heads_that_share_values_are_refused_where_neither_shows():
    def pooled(s, q, k, v):
        few = q[:, :, :HEADS]
        maps = torch.einsum("bhnd,bmd->bhnm", few, k[:, 0]).softmax(-1)
        read = torch.einsum("bhnm,bmd->bhnd", maps, v[:, 0])
        return torch.cat([read, q[:, :, HEADS:]], 2)

    with pytest.raises(CaptureError, match="which are heads that share V, and which are queries, cannot be told"):
        list(ap.capture(model_of(pooled), PIXELS, "weights"))


LAYOUTS = {
    "image, window, head": (lambda x: x, lambda y: y),
    "image, head, window": (lambda x: x.transpose(1, 2), lambda y: y.transpose(1, 2)),
    "image * window, head": (lambda x: x.flatten(0, 1), lambda y: y.unflatten(0, (-1, 4))),
}


class Windows(nn.Module):
    """Attention in 4 windows of 4 x 4 of 8 x 8 tokens; `axes` says in which order they stand."""

    def __init__(self, axes, heads, states, copies=False):
        super().__init__()
        self.window_size, self.copies, self.there = 4, copies, heads
        self.axes, self.back = LAYOUTS[axes]
        self.qkv, self.proj = nn.Linear(48, 3 * 48), nn.Linear(48, 48)
        if states:
            self.num_heads = heads

    def split(self, x):
        x = x.view(-1, 2, 4, 2, 4, 48).transpose(2, 3).reshape(-1, 4, 16, 48)
        return self.qkv(x).unflatten(-1, (3, self.there, -1)).permute(3, 0, 1, 4, 2, 5)

    def forward(self, x):
        q, k, v = (self.axes(t.contiguous() if self.copies else t) for t in self.split(x))
        y = self.back((q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v).transpose(2, 3).reshape(-1, 2, 2, 4, 4, 48)
        return self.proj(y.transpose(2, 3).reshape(-1, 64, 48))


class Windowed(ViT):
    def forward(self, x):
        x = self.embed(x).flatten(2).mT + self.pos[:, 1:]
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return x.mean(1)


def windowed(*options, **more):
    return Windowed(lambda _: Windows(*options, **more), depth=2, patch=4).eval()


@pytest.mark.parametrize("states", [True, False])
@pytest.mark.parametrize("heads", [2, 4, 8])
@pytest.mark.parametrize("axes", LAYOUTS)
def test_windows_and_heads_keep_their_places_even_if_they_are_equally_many(axes, heads, states):
    model, given = windowed(axes, heads, states), []
    (maps,) = ap.capture(model, PIXELS, "weights")
    hook = model.blocks[0].register_forward_pre_hook(lambda _m, args: given.append(args[0]))
    with torch.no_grad():
        model(PIXELS)
        hook.remove()
        q, k, _ = model.blocks[0].split(given[0])
        wanted = (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1).transpose(1, 2).flatten(2, 3)
    assert maps.kind == "window"
    torch.testing.assert_close(maps.values[:, 0], wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("axes", "states"),
    [(axes, states) for axes in LAYOUTS for states in (True, False) if states or not axes.startswith("image *")],
)
def test_windows_and_heads_that_cannot_be_told_apart_are_refused(axes, states):
    with pytest.raises(CaptureError, match=r"blocks\.0: maps of .* which counts heads cannot be told"):
        list(ap.capture(windowed(axes, 4, states, copies=True), PIXELS, "weights"))


def test_images_windows_and_heads_in_one_axis_are_refused_where_no_number_of_heads_is_stated(monkeypatch):
    one = (lambda x: x.flatten(0, 2), lambda y: y.unflatten(0, (-1, 4, 2)))
    monkeypatch.setitem(LAYOUTS, "image * window, head", one)
    with pytest.raises(CaptureError, match="count images, windows and heads in one axis"):
        list(ap.capture(windowed("image * window, head", 2, False), PIXELS, "weights"))
    (maps,) = ap.capture(windowed("image * window, head", 2, True), PIXELS, "weights")
    assert maps.values.shape == (4, 2, 2, 64, 16)
