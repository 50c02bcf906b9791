"""Heads folded into the queries of one product, and heads whose module is not the one that multiplies V."""

import pytest
import torch
from torch import nn

import attnprobe as ap
from attnprobe.capturing import certify
from attnprobe.core.errors import CaptureError
from tests.capturing.test_joined_heads import LOOPS, RANGE, Bare, NamedHeads, attend, fused, heads, vit
from tests.capturing.test_layouts import PIXELS, ViT, captured, maps_by_hand, soft

FOLDED = {
    "heads first": lambda q, k, v: attend(q.flatten(1, 2), k[:, 0], v[:, 0]).unflatten(1, q.shape[1:3]),
    "tokens first": lambda q, k, v: (
        attend(q.transpose(1, 2).flatten(1, 2), k[:, 0], v[:, 0]).view(len(q), 17, 3, -1).transpose(1, 2)
    ),
    "tokens first, to channels": lambda q, k, v: heads(
        attend(q.transpose(1, 2).flatten(1, 2), k[:, 0], v[:, 0]).reshape(len(q), 17, 48)
    ),
    "fused": lambda q, k, v: fused(q.flatten(1, 2), k[:, 0], v[:, 0]).unflatten(1, q.shape[1:3]),
    "chunks": lambda q, k, v: torch.stack(attend(q.flatten(1, 2), k[:, 0], v[:, 0]).chunk(3, 1), 1),
    "scaled and turned": lambda q, k, v: (
        (2 * attend(q.flatten(1, 2), k[:, 0], v[:, 0])).mT.contiguous().unflatten(2, q.shape[1:3]).permute(0, 2, 3, 1)
    ),
    "einsum": lambda q, k, v: torch.einsum("brn,bnd->brd", soft(q.flatten(1, 2), k[:, 0]), v[:, 0]).unflatten(
        1, q.shape[1:3]
    ),
}


@pytest.mark.parametrize("name", FOLDED)
def test_heads_folded_into_queries_are_heads(name):
    model = vit(FOLDED[name])
    (maps,) = ap.capture(model, PIXELS, "weights")
    assert (maps.kind, maps.layers) == ("self", ("blocks.0", "blocks.1", "blocks.2"))
    torch.testing.assert_close(maps.values, shared(model, [0, 0, 0]), rtol=0, atol=1e-6)
    assert all(layer.value_error < 1e-5 for layer in certify(model, PIXELS).layers)
    (scores,) = ap.capture(model, PIXELS, "scores", values=True)
    torch.testing.assert_close(scores.values.softmax(-1), maps.values, rtol=0, atol=1e-6)


def shared(model, keys):
    """Maps by hand, where each head has the keys of one head."""
    for block in model.blocks:
        block.split = lambda x, split=block.split: pick(*split(x), keys)
    wanted = maps_by_hand(model)
    for block in model.blocks:
        del block.split
    return wanted


def pick(q, k, v, keys):
    return q, k[:, keys], v


GROUPED = {
    "two by two": lambda q, k, v: (
        attend(q.unflatten(1, (2, 2)).flatten(2, 3), k[:, ::2], v[:, ::2]).unflatten(2, (2, 17)).flatten(1, 2)
    ),
    "at once": lambda q, k, v: attend(q.unflatten(1, (2, 2)).flatten(2, 3), k[:, ::2], v[:, ::2]).reshape(q.shape),
}


@pytest.mark.parametrize("name", GROUPED)
def test_groups_of_heads_folded_into_queries_are_heads(name):
    model = vit(GROUPED[name], heads=4)
    (maps,) = ap.capture(model, PIXELS, "weights")
    assert maps.kind == "self" and maps.values.shape == (4, 3, 4, 17, 17)
    torch.testing.assert_close(maps.values[:, 0], shared(model, [0, 0, 2, 2])[:, 0], rtol=0, atol=1e-6)


UNTOLD = {
    "not cut": lambda q, k, v: attend(q.flatten(1, 2), k[:, 0], v[:, 0])[:, :17].repeat(1, 1, 3),
    "gathered": lambda q, k, v: attend(q.flatten(1, 2), k[:, 0], v[:, 0])[:, torch.arange(51)].view(len(q), 17, 48),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_folded_heads_of_unknown_order_are_refused(name):
    with pytest.raises(CaptureError, match="51 queries for 17 tokens.*cannot be told"):
        captured(vit(lambda q, k, v: heads(UNTOLD[name](q, k, v))))


def test_as_many_heads_as_tokens_folded_into_queries_are_refused():
    model = ViT(lambda _: Bare(FOLDED["heads first"], 51, 17), width=51).eval()
    with pytest.raises(CaptureError, match="289 queries for 17 tokens"):
        captured(model)


def test_more_learnt_queries_than_tokens_are_queries():
    class Latents(nn.Module):
        def __init__(self):
            super().__init__()
            self.queries, self.k, self.v = nn.Parameter(torch.randn(34, 48)), nn.Linear(48, 48), nn.Linear(48, 48)

        def forward(self, x):
            return soft(self.queries.expand(len(x), -1, -1), self.k(x)) @ self.v(x)

    class Reads(ViT):
        def __init__(self):
            super().__init__(lambda _: Bare(attend))
            self.latents = Latents()

        def forward(self, x):
            x = self.embed(x).flatten(2).mT
            x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos
            return self.latents(self.blocks[0](x)).mean(1)

    shapes = {maps.kind: maps.values.shape[2:] for maps in ap.capture(Reads().eval(), PIXELS)}
    assert shapes == {"self": (3, 17, 17), "pyramid": (1, 34, 17)}


class Core(nn.Module):
    def forward(self, q, k, v):
        return attend(q, k, v)


class Unit(nn.Module):
    def forward(self, x):
        return x / x.std(-1, keepdim=True)


class InAModule(Bare):
    """A module without weights multiplies maps and values, of one head or of heads folded into queries."""

    def __init__(self, mix):
        super().__init__(None)
        self.core = Core()
        self.mix = lambda q, k, v: mix(self.core, q, k, v)


INSIDE = {
    "folded": lambda core, q, k, v: core(q.flatten(1, 2), k[:, 0], v[:, 0]).unflatten(1, q.shape[1:3]),
    "folded, tokens first": lambda core, q, k, v: heads(
        core(q.transpose(1, 2).flatten(1, 2), k[:, 0], v[:, 0]).reshape(len(q), 17, 48)
    ),
    "a loop": lambda core, q, k, v: torch.stack([core(q[:, h], k[:, 0], v[:, 0]) for h in RANGE], 1),
}


@pytest.mark.parametrize("name", INSIDE)
def test_heads_are_told_behind_the_module_that_multiplies_values(name):
    model = ViT(lambda _: InAModule(INSIDE[name])).eval()
    (maps,) = ap.capture(model, PIXELS, "weights")
    assert (maps.kind, maps.grid.rows) == ("self", 4)
    torch.testing.assert_close(maps.values, shared(model, [0, 0, 0]), rtol=0, atol=1e-6)


def test_rows_folded_in_another_module_whose_order_is_not_told_are_refused():
    model = ViT(lambda _: InAModule(lambda core, q, k, v: core(q.flatten(1, 2), k[:, 0], v[:, 0])[:, None, :17]))
    for block in model.blocks:
        block.proj = nn.Linear(16, 48)
    with pytest.raises(CaptureError, match="51 queries for 17 tokens"):
        captured(model.eval())


def test_a_module_behind_each_head_leaves_them_heads():
    unit = Unit()
    model = ViT(lambda _: NamedHeads("dict", join=lambda ys: torch.cat([unit(y) for y in ys], -1)))
    for block in model.blocks:
        block.unit = unit
    (maps,) = ap.capture(model.eval(), PIXELS, "weights")
    torch.testing.assert_close(maps.values, maps_by_hand(model), rtol=0, atol=1e-6)


class OfChannels(nn.Module):
    """[image, channel, row, col] -> the same; heads in a loop, or folded into queries."""

    def __init__(self, folded):
        super().__init__()
        self.qkv, self.folded = nn.Conv2d(48, 144, 1), folded

    def split(self, x):
        return self.qkv(x).flatten(2).unflatten(1, (3, 3, 16)).permute(1, 0, 2, 4, 3)

    def forward(self, x):
        q, k, v = self.split(x)
        if self.folded:
            y = attend(q.flatten(1, 2), k[:, 0], v[:, 0]).unflatten(1, (3, -1)).mT
        else:
            y = torch.cat([attend(q[:, h], k[:, h], v[:, h]).mT for h in RANGE], 1)
        return x + y.reshape(x.shape)


@pytest.mark.parametrize("folded", [False, True])
def test_heads_of_a_layer_whose_channels_come_first_are_heads(folded):
    class Grid(ViT):
        def forward(self, x):
            x = self.embed(x)
            for block in self.blocks:
                x = block(x)
            return x.mean((2, 3))

    model = Grid(lambda _: OfChannels(folded)).eval()
    (maps,) = ap.capture(model, PIXELS, "weights")
    assert maps.kind == "self"
    torch.testing.assert_close(maps.values, shared(model, [0, 0, 0] if folded else [0, 1, 2]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("first", [False, True])
def test_a_loop_over_heads_of_a_sequence_that_comes_first_is_one_layer(first):
    class Turned(Bare):
        def split(self, x):
            return super().split(x.transpose(0, 1) if first else x)

        def forward(self, x):
            y = super().forward(x)
            return y.transpose(0, 1) if first else y

    class Sequence(ViT):
        def forward(self, x):
            x = self.embed(x).flatten(2).mT + self.pos[:, 1:]
            x = x.transpose(0, 1) if first else x
            for block in self.blocks:
                x = x + block(x)
            return x.mean(0 if first else 1)

    model = Sequence(lambda _: Turned(LOOPS["cat of channels"])).eval()
    (maps,) = ap.capture(model, PIXELS, "weights")
    torch.testing.assert_close(maps.values, maps_by_hand(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["heads first", "tokens first"])
def test_one_image_has_the_folded_heads_that_several_have(name):
    model = vit(FOLDED[name])
    (one,), (all_,) = ap.capture(model, PIXELS[:1], "weights"), ap.capture(model, PIXELS, "weights")
    torch.testing.assert_close(one.values, all_.values[:1], rtol=0, atol=1e-6)


def test_folded_heads_that_leave_their_module_apart_are_heads():
    class Apart(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(48, 144)

        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, 3, -1)).permute(2, 0, 3, 1, 4)
            return attend(q.flatten(1, 2), k[:, 0], v[:, 0]).unflatten(1, (3, 17))

    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend, self.proj = Apart(), nn.Linear(48, 48)

        def forward(self, x):
            return self.proj(self.attend(x).transpose(1, 2).flatten(2))

    (maps,) = ap.capture(ViT(lambda _: Block()).eval(), PIXELS, "weights")
    assert maps.kind == "self" and maps.values.shape == (4, 3, 3, 17, 17)


def test_folded_heads_are_told_for_as_many_images_as_rows():
    model = vit(FOLDED["heads first"])
    (few,), (many,) = ap.capture(model, PIXELS[:1]), ap.capture(model, PIXELS[:1].repeat(51, 1, 1, 1), batch_size=51)
    torch.testing.assert_close(many.values[-1:], few.values, rtol=0, atol=1e-6)
