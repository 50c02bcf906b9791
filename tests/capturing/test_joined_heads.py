"""Heads in loops, in modules of any container, of several widths, and folded into the rows of one product."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import attnprobe as ap
from attnprobe.capturing import certify
from attnprobe.core.errors import CaptureError
from tests.capturing.test_layouts import PIXELS, Head, ListOfHeads, ViT, captured, maps_by_hand, soft

RANGE = range(3)


class Bare(nn.Module):
    """Attention whose module states no number of heads."""

    def __init__(self, mix, width=48, heads=3):
        super().__init__()
        self.mix, self.there = mix, heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def split(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.there, -1)).permute(2, 0, 3, 1, 4)
        return 3 * q, k, v

    def forward(self, x):
        return self.proj(self.mix(*self.split(x)).transpose(1, 2).flatten(2))


def vit(mix, **options):
    return ViT(lambda _: Bare(mix, **options)).eval()


def attend(q, k, v):
    return soft(q, k) @ v


def fused(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, scale=1.0)


def heads(y):
    return y.unflatten(2, (3, -1)).transpose(1, 2)


def each(q, k, v, order=RANGE, one=attend):
    return {h: one(q[:, h], k[:, h], v[:, h]) for h in order}


def written(q, k, v, where, order=(2, 0, 1)):
    out = torch.zeros_like(q) if where == "heads" else q.new_zeros(len(q), q.shape[2], 48)
    for h, y in each(q, k, v, order).items():
        if where == "heads":
            out[:, h] = y
        elif where == "added":
            out[..., 16 * h : 16 * h + 16] += y
        else:
            out[..., h::3] = y
    return (
        out if where == "heads" else heads(out) if where == "added" else out.unflatten(2, (-1, 3)).permute(0, 3, 1, 2)
    )


LOOPS = {
    "cat of heads": lambda q, k, v: torch.cat(
        [attend(q[:, h : h + 1], k[:, h : h + 1], v[:, h : h + 1]) for h in RANGE], 1
    ),
    "cat of channels": lambda q, k, v: heads(torch.cat([*each(q, k, v).values()], -1)),
    "cat of channels, fused": lambda q, k, v: heads(torch.cat([*each(q, k, v, one=fused).values()], dim=-1)),
    "backwards": lambda q, k, v: torch.stack([y for _, y in sorted(each(q, k, v, (2, 1, 0)).items())], 1),
    "hstack": lambda q, k, v: torch.hstack([*each(q[:, :, None], k[:, :, None], v[:, :, None]).values()]),
    "cat of tokens turned": lambda q, k, v: heads(torch.cat([y.mT for y in each(q, k, v).values()], 1).mT),
    "written": lambda q, k, v: written(q, k, v, "heads"),
    "added to its place": lambda q, k, v: written(q, k, v, "added"),
    "every third channel": lambda q, k, v: written(q, k, v, "strided"),
    "a group of two and one": lambda q, k, v: torch.cat(
        [attend(q[:, at], k[:, at], v[:, at]) for at in (slice(0, 2), slice(2, 3))], 1
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_a_loop_over_heads_is_one_layer_where_no_number_of_heads_is_stated(name):
    model = vit(LOOPS[name])
    (maps,) = ap.capture(model, PIXELS, "weights")
    assert (maps.kind, maps.layers, maps.grid.rows) == ("self", ("blocks.0", "blocks.1", "blocks.2"), 4)
    torch.testing.assert_close(maps.values, maps_by_hand(model), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        maps.values.sum(), captured(same_weights(model, vit(attend)), "weights").sum(), rtol=1e-6, atol=0
    )
    assert all(layer.value_error < 1e-5 for layer in certify(model, PIXELS).layers)


def same_weights(model, other):
    other.load_state_dict(model.state_dict())
    return other


def copied(q, k, v):
    out = torch.zeros_like(q)
    for h, y in each(q, k, v).items():
        out[:, h].copy_(y)
    return out


def in_two_steps(q, k, v):
    a, b, c = each(q, k, v).values()
    return heads(torch.cat([torch.cat([a, b], -1), c], -1))


def heads_and_chunks(q, k, v):
    return torch.stack([torch.cat([attend(c, k[:, h], v[:, h]) for c in q[:, h].split(9, 1)], 1) for h in RANGE], 1)


@pytest.mark.parametrize("mix", [copied, in_two_steps, heads_and_chunks])
def test_heads_whose_place_is_not_seen_are_refused_and_no_layers(mix):
    with pytest.raises(CaptureError, match="the order of rows or heads is not known"):
        captured(vit(mix))


BRANCHES = {
    "summed": lambda q, k, v: attend(q, k, v) + attend(k, q, q),
    "summed heads": lambda q, k, v: sum(each(q, k, v).values())[:, None].expand(-1, 3, -1, -1),
    "as further tokens": lambda q, k, v: torch.cat([attend(q, k, v), attend(k, q, q)], 2)[:, :, ::2],
}


@pytest.mark.parametrize("name", BRANCHES)
def test_branches_that_are_no_heads_of_one_stay_layers(name):
    (maps,) = ap.capture(vit(BRANCHES[name]), PIXELS, "weights")
    n, n_heads = (3, 1) if "heads" in name else (2, 3)
    assert maps.values.shape == (4, 3 * n, n_heads, 17, 17)


class NamedHeads(ListOfHeads):
    """Heads that are attributes, or in a dictionary."""

    def __init__(self, how, sizes=(16, 16, 16), given=lambda x, i: x, join=None):
        super().__init__()
        made = [Head(48, size) for size in sizes]
        names = ["head_c", "head_a", "head_b"]
        self.how, self.given, self.join = how, given, join or (lambda ys: torch.cat(ys, -1))
        self.heads = nn.ModuleDict(zip(names, made, strict=True)) if how == "dict" else nn.ModuleList(made)
        if how == "attributes":
            del self.heads
            for name, head in zip(names, made, strict=True):
                setattr(self, name, head)
        self.proj = nn.Linear(sum(sizes), 48)

    @property
    def all(self):
        if self.how == "attributes":
            return [self.head_c, self.head_a, self.head_b]
        return [*(self.heads.values() if self.how == "dict" else self.heads)]

    def split(self, x):
        q, k, v = (
            torch.stack([F.pad(y, (0, 32 - y.shape[-1])) for y in ys], 1)
            for ys in ([getattr(head, n)(self.given(x, i)) for i, head in enumerate(self.all)] for n in "qkv")
        )
        return q * 16**-0.5, k, v

    def forward(self, x):
        return self.proj(self.join([head(self.given(x, i)) for i, head in enumerate(self.all)]))


NAMED = {
    "of several widths": {"sizes": (4, 8, 12)},
    "given parts of the input": {"given": lambda x, i: F.pad(x[..., 16 * i : 16 * i + 16], (0, 32))},
    "joined backwards": {"join": lambda ys: torch.cat(ys[::-1], -1)},
    "scaled, then stacked": {"join": lambda ys: torch.stack([2 * y for y in ys], 2).flatten(2)},
    "plain": {},
}


@pytest.mark.parametrize("how", ["dict", "attributes", "list"])
@pytest.mark.parametrize("name", [name for name in NAMED if "parts" not in name])
def test_heads_of_any_container_are_heads_of_one_layer(name, how):
    model = ViT(lambda _: NamedHeads(how, **NAMED[name])).eval()
    (maps,) = ap.capture(model, PIXELS, "weights")
    wanted = maps_by_hand(model)
    assert (maps.kind, maps.layers) == ("self", ("blocks.0", "blocks.1", "blocks.2"))
    torch.testing.assert_close(maps.values, wanted.flip(2) if "backwards" in name else wanted, rtol=0, atol=1e-6)


@pytest.mark.parametrize("how", ["dict", "attributes", "list"])
def test_heads_that_are_given_parts_of_the_input_are_heads_of_one_layer(how):
    class Part(Head):
        def __init__(self, *_):
            super().__init__(16, 16)

    class Parts(NamedHeads):
        def __init__(self):
            super().__init__(how, given=lambda x, i: x.chunk(3, -1)[i])
            for head in self.all:
                for name in "qkv":
                    setattr(head, name, nn.Linear(16, 16))

    model = ViT(lambda _: Parts()).eval()
    (maps,) = ap.capture(model, PIXELS, "weights")
    torch.testing.assert_close(maps.values, maps_by_hand(model), rtol=0, atol=1e-6)


def test_single_heads_in_a_row_are_layers_even_if_tokens_are_added_in_place():
    class InPlace(ViT):
        def forward(self, x):
            x = self.embed(x).flatten(2).mT + self.pos[:, 1:]
            for block in self.blocks:
                x += block(x)
            return x.mean(1)

    (maps,) = ap.capture(InPlace(lambda _: Head(48, 48)).eval(), PIXELS, "weights")
    assert maps.values.shape == (4, 3, 1, 16, 16)


@pytest.mark.parametrize("join", [sum, lambda ys: ys[0] * ys[1]])
def test_modules_side_by_side_that_are_summed_stay_layers(join):
    model = ViT(lambda _: NamedHeads("attributes", join=lambda ys: join(ys).repeat(1, 1, 3))).eval()
    (maps,) = ap.capture(model, PIXELS, "weights")
    assert maps.values.shape == (4, 9, 1, 17, 17) and maps.layers[0] == "blocks.0.head_c"


def widths(q, k, v, sizes=(4, 8, 12)):
    return F.pad(torch.cat([attend(q[:, h], k[:, h], v[:, h, :, :n]) for h, n in enumerate(sizes)], -1), (0, 24))


@pytest.mark.parametrize("site", ["weights", "effective", "scores"])
def test_heads_of_several_widths_have_maps_and_no_values(site):
    model = vit(lambda q, k, v: heads(widths(q, k, v)))
    wanted = maps_by_hand(model, lambda x: x) if site == "scores" else maps_by_hand(model)
    torch.testing.assert_close(captured(model, site), wanted, rtol=0, atol=1e-5)
    assert all(layer.value_error < 1e-5 for layer in certify(model, PIXELS).layers)
    with pytest.raises(CaptureError, match="no values can be kept"):
        captured(model, site, values=True)


def test_an_error_in_the_middle_of_a_layer_leaves_no_refusal_for_the_next_pass():
    failing = []

    def mix(q, k, v):
        ys = each(q, k, v, (0, 1))
        if failing:
            raise RuntimeError(failing.pop())
        return heads(torch.cat([*ys.values(), attend(q[:, 2], k[:, 2], v[:, 2])], -1))

    model = vit(mix)
    wanted = captured(model, "weights")
    with torch.no_grad(), ap.record(model, "weights") as recording:
        failing.append("once")
        with pytest.raises(RuntimeError, match="once"):
            model(PIXELS)
        recording.forget()
        model(PIXELS)
        (maps,) = recording.take()
    torch.testing.assert_close(maps.values, wanted, rtol=0, atol=1e-6)
