"""Attention written in many ways, in a small ViT: the maps as computed apart, or a refusal with the reason."""

import pytest
import torch
from torch import nn

import attnprobe as ap
from attnprobe.core.errors import CaptureError, InputError

PIXELS = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    """[image, token, width] -> the same; a case says how maps and values are multiplied."""

    def __init__(self, mix, width=48, heads=3):
        super().__init__()
        self.mix, self.num_heads = mix, heads
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def split(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q * q.shape[-1] ** -0.5, k, v

    def forward(self, x):
        return self.proj(self.mix(self, *self.split(x)).transpose(1, 2).flatten(2))


class ViT(nn.Module):
    def __init__(self, attention, depth=3, patch=8, channels=3, side=32, width=48, views=False):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(channels, width, patch, patch)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width))
        self.pos = nn.Parameter(0.2 * torch.randn(1, (side // patch) ** 2 + 1, width))
        self.blocks = nn.ModuleList([attention(i) for i in range(depth)])
        self.norms = nn.ModuleList([nn.LayerNorm(width) for _ in range(depth)])
        self.head, self.views = nn.Linear(width, 10), views

    def forward(self, x):
        x = torch.cat([x, x.flip(-1)]) if self.views else x
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos
        for norm, block in zip(self.norms, self.blocks, strict=True):
            x = x + block(norm(x))
        return self.head(x[:, 0])


def vit(mix, **options):
    return ViT(lambda _: Attention(mix), **options).eval()


def maps_by_hand(model, of=lambda scores: scores.softmax(-1)):
    """[image, layer, head, query, key], from the inputs that each attention module was given."""
    given = []
    hooks = [block.register_forward_pre_hook(lambda _m, args: given.append(args[0])) for block in model.blocks]
    with torch.no_grad():
        model(PIXELS)
        maps = [of(q @ k.mT) for q, k, _ in (b.split(x) for b, x in zip(model.blocks, given, strict=True))]
    for hook in hooks:
        hook.remove()
    return torch.stack(maps, 1)


def captured(model, site="effective", **options):
    return torch.cat([m.values for m in ap.capture(model, PIXELS, site, **options)])


def soft(q, k):
    return (q @ k.mT).softmax(-1)


def by_hand(q, k):
    e = (q @ k.mT - (q @ k.mT).amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


SOFTMAXES = {
    "special.softmax": lambda s, q, k, v: torch.special.softmax(q @ k.mT, -1) @ v,
    "log_softmax and exp": lambda s, q, k, v: torch.log_softmax(q @ k.mT, -1).exp() @ v,
    "by hand": lambda s, q, k, v: by_hand(q, k) @ v,
    "linalg.matmul": lambda s, q, k, v: torch.linalg.matmul(soft(q, k), v),
    "baddbmm": lambda s, q, k, v: torch.baddbmm(
        torch.zeros(v.flatten(0, 1).shape), soft(q, k).flatten(0, 1), v.flatten(0, 1)
    ).view(v.shape),
    "einsum of three": lambda s, q, k, v: torch.einsum("bhnm,bhmd,h->bhnd", soft(q, k), v, torch.ones(3)),
    "chunks of queries": lambda s, q, k, v: torch.cat([soft(c, k) @ v for c in q.split(8, 2)], 2),
    "a loop over heads": lambda s, q, k, v: torch.stack([soft(q[:, h], k[:, h]) @ v[:, h] for h in range(3)], 1),
}


@pytest.mark.parametrize("name", SOFTMAXES)
def test_a_softmax_in_other_words_is_read(name):
    model = vit(SOFTMAXES[name])
    torch.testing.assert_close(captured(model, "weights"), maps_by_hand(model), rtol=0, atol=1e-6)


GATES = {
    "sigmoid": (lambda s, q, k, v: (q @ k.mT).sigmoid() @ v, torch.sigmoid),
    "relu over length": (lambda s, q, k, v: ((q @ k.mT).relu() / 17) @ v, lambda x: x.relu() / 17),
    "softmax off by one": (
        lambda s, q, k, v: ((q @ k.mT).exp() / (1 + (q @ k.mT).exp().sum(-1, keepdim=True))) @ v,
        lambda x: x.exp() / (1 + x.exp().sum(-1, keepdim=True)),
    ),
    "a sink column": (
        lambda s, q, k, v: torch.cat([q @ k.mT, torch.zeros(*q.shape[:-1], 1)], -1).softmax(-1)[..., :-1] @ v,
        lambda x: x.exp() / (1 + x.exp().sum(-1, keepdim=True)),
    ),
}


@pytest.mark.parametrize("name", GATES)
def test_maps_whose_rows_do_not_sum_to_one_are_effective(name):
    mix, of = GATES[name]
    model = vit(mix)
    maps = list(ap.capture(model, PIXELS, ("weights", "effective")))
    assert {m.site for m in maps} == {"effective"} and not maps[0].stochastic
    torch.testing.assert_close(torch.cat([m.values for m in maps]), maps_by_hand(model, of), rtol=0, atol=1e-6)


def test_one_map_for_all_heads_is_each_heads_map():
    model = vit(lambda s, q, k, v: soft(q, k).mean(1, keepdim=True) @ v)
    wanted = maps_by_hand(model).mean(2, keepdim=True).expand(-1, -1, 3, -1, -1)
    torch.testing.assert_close(captured(model), wanted, rtol=0, atol=1e-6)


REFUSED = {
    "multiply and sum": (lambda s, q, k, v: (soft(q, k).unsqueeze(-1) * v.unsqueeze(2)).sum(3), "ends in 'mul'"),
    "linear attention": (lambda s, q, k, v: q.softmax(-1) @ (k.softmax(-2).mT @ v), "linear attention"),
    "a loop over images": (
        lambda s, q, k, v: torch.stack([soft(q[i], k[i]) @ v[i] for i in range(len(q))]),
        "which axis is the image's cannot be told",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_refused_with_the_reason(name):
    mix, reason = REFUSED[name]
    with pytest.raises(CaptureError, match=reason):
        captured(vit(mix))


def test_linear_attention_is_refused_where_tokens_are_as_many_as_channels():
    model = ViT(lambda _: Attention(REFUSED["linear attention"][0], width=51), width=51).eval()  # 17 tokens, 17 wide
    with pytest.raises(CaptureError, match="linear attention"):
        captured(model)


class Head(nn.Module):
    def __init__(self, width, size):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, size) for _ in range(3))

    def forward(self, x):
        return soft(self.q(x) * 16**-0.5, self.k(x)) @ self.v(x)


class ListOfHeads(nn.Module):
    def __init__(self, width=48):
        super().__init__()
        self.heads = nn.ModuleList([Head(width, 16) for _ in range(3)])

    def split(self, x):
        q, k, v = (torch.stack([getattr(head, name)(x) for head in self.heads], 1) for name in "qkv")
        return q * 16**-0.5, k, v

    def forward(self, x):
        return torch.cat([head(x) for head in self.heads], -1)


def test_heads_in_a_list_are_heads_of_one_layer():
    model = ViT(lambda _: ListOfHeads()).eval()
    maps = list(ap.capture(model, PIXELS, "weights"))
    assert maps[0].layers == ("blocks.0", "blocks.1", "blocks.2")
    torch.testing.assert_close(torch.cat([m.values for m in maps]), maps_by_hand(model), rtol=0, atol=1e-6)


def test_every_second_block_in_other_words_is_not_left_out():
    plain, other = (lambda s, q, k, v: soft(q, k) @ v), SOFTMAXES["by hand"]
    model = ViT(lambda i: Attention(other if i % 2 else plain), depth=4).eval()
    torch.testing.assert_close(captured(model, "weights"), maps_by_hand(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize(("channels", "patch", "side"), [(12, 8, 32), (12, 14, 56), (1, 7, 28)])
def test_patches_of_any_size_and_number_of_channels_are_measured(channels, patch, side):
    model = vit(SOFTMAXES["by hand"], channels=channels, patch=patch, side=side)
    pixels = torch.randn(2, channels, side, side, generator=torch.Generator().manual_seed(1))
    capture = ap.capture(model, pixels, "weights")
    (maps,) = capture
    assert (maps.grid.rows, maps.grid.cols, maps.grid.prefix, maps.grid.patch) == (4, 4, ("cls",), (patch, patch))
    assert {place.status for place in capture.certificate.located.places.values()} == {"proved"}


def test_views_joined_in_a_batch_are_refused():
    with pytest.raises(CaptureError, match="test-time augmentation"):
        captured(vit(SOFTMAXES["by hand"], views=True))


class SequenceFirst(nn.Module):
    def __init__(self, batch_first):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.first = nn.Conv2d(3, 48, 8, 8), batch_first
        layer = nn.TransformerEncoderLayer(48, 4, 96, batch_first=batch_first)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        return self.encoder(x if self.first else x.transpose(0, 1))


@pytest.mark.parametrize("n", [4, 16])
def test_blocks_that_put_the_sequence_first_give_the_tokens_of_their_images(n):
    images = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    ours, theirs = (
        [m.tokens for m in ap.capture(SequenceFirst(first).eval(), images, tokens=True, batch_size=n)]
        for first in (False, True)
    )
    assert ours[0].shape == (n, 3, 16, 48)
    torch.testing.assert_close(torch.cat(ours), torch.cat(theirs), rtol=0, atol=1e-5)


def test_merged_patches_get_no_place_and_no_distance():
    class Merged(ViT):
        order = torch.randperm(16, generator=torch.Generator().manual_seed(3))

        def forward(self, x):
            x = self.embed(x).flatten(2).transpose(1, 2)[:, self.order]
            x = (x[:, :8] + x[:, 8:]) / 2
            for norm, block in zip(self.norms, self.blocks, strict=True):
                x = x + block(norm(x))
            return self.head(x[:, 0])

    maps = list(ap.capture(Merged(lambda _: Attention(SOFTMAXES["by hand"])).eval(), PIXELS, "weights"))
    assert maps[0].grid.rows == 0
    with pytest.raises(InputError, match="the place of its tokens in the image is not known"):
        ap.measure(maps, ["attention_distance"])


def test_other_numbers_of_texts_and_images_are_refused():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.vision, self.words = vit(SOFTMAXES["by hand"]), nn.Embedding(9, 48)

        def forward(self, ids, pixels):
            return self.vision(pixels) @ self.vision.head(self.words(ids).mean(1)).T

    pair = Pair().eval()
    with torch.no_grad(), pytest.raises(CaptureError, match="4 images and 8 texts"), ap.record(pair, "weights"):
        pair(torch.zeros(8, 5, dtype=torch.long), PIXELS)


class Block(nn.Module):
    """A block around attention that returns its tokens in one of several ways."""

    def __init__(self, wrap):
        super().__init__()
        self.attn, self.wrap = Attention(lambda s, q, k, v: soft(q, k) @ v), wrap

    def forward(self, x):
        return self.wrap(x + self.attn(x))


class Blocks(ViT):
    """A ViT whose blocks return more than their tokens; `pick` takes these."""

    def __init__(self, wrap, pick):
        super().__init__(lambda _: Block(wrap))
        self.pick = pick

    def forward(self, x):
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos
        for block in self.blocks:
            x = self.pick(block(x))
        return self.head(x[:, 0])


RETURNS = {
    "alone": (lambda y: y, lambda out: out),
    "before maps": (lambda y: (y, y @ y.mT), lambda out: out[0]),
    "after one number per image": (lambda y: (y.mean((1, 2)), y), lambda out: out[1]),
    "after maps of three axes": (lambda y: (y @ y.mT, y), lambda out: out[1]),
    "by name": (lambda y: {"weights": None, "hidden": y}, lambda out: out["hidden"]),
    "in a list in a tuple": (lambda y: (None, [y]), lambda out: out[1][0]),
}


@pytest.mark.parametrize("way", RETURNS)
def test_the_tokens_of_a_block_are_found_among_all_that_it_returns(way):
    model, seen = Blocks(*RETURNS[way]).eval(), []
    for block in model.blocks:
        block.register_forward_hook(lambda _m, _args, out: seen.append(model.pick(out)))
    with torch.no_grad():
        model(PIXELS)
    expected = torch.stack(seen, 1)
    assert torch.equal(torch.cat([maps.tokens for maps in ap.capture(model, PIXELS, tokens=True)]), expected)


def test_attention_inside_a_transform_of_functions_is_refused_in_a_line():
    def of_one_image(x, weight):
        q, k, v = (x @ weight).chunk(3, -1)
        return (q @ k.mT).softmax(-1) @ v

    class Transformed(Attention):
        def forward(self, x):
            return torch.func.vmap(of_one_image, (0, None))(x, self.qkv.weight.mT)

    with pytest.raises(CaptureError, match="inside torch.func.vmap.*write it for a batch of images"):
        captured(ViT(lambda _: Transformed(None)).eval())


class Rows(nn.Module):
    """A block that is given tokens in rows and columns, channels last or first, and returns them so."""

    def __init__(self, first):
        super().__init__()
        self.attn, self.first = Attention(lambda s, q, k, v: soft(q, k) @ v), first

    def forward(self, x):
        tokens = x.flatten(2).mT if self.first else x.flatten(1, 2)
        tokens = tokens + self.attn(tokens)
        return (tokens.mT if self.first else tokens).reshape(x.shape)


class Pyramid(ViT):
    """A ViT without a class token, whose blocks keep the grid of patches."""

    def __init__(self, first, patch):
        super().__init__(lambda _: Rows(first), patch=patch)
        self.first = first

    def forward(self, x):
        x = self.embed(x)
        x = x if self.first else x.permute(0, 2, 3, 1)
        for block in self.blocks:
            x = block(x)
        return self.head(x.flatten(2).mean(-1) if self.first else x.flatten(1, 2).mean(1))


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("patch", [8, 4])
def test_tokens_in_rows_and_columns_are_the_tokens_of_a_block(first, patch):
    model, seen = Pyramid(first, patch).eval(), []
    for block in model.blocks:
        block.register_forward_hook(
            lambda _m, _args, out: seen.append(out.flatten(2).mT if first else out.flatten(1, 2))
        )
    with torch.no_grad():
        model(PIXELS)
    expected = torch.stack(seen, 1)
    assert torch.equal(torch.cat([maps.tokens for maps in ap.capture(model, PIXELS, tokens=True)]), expected)


def test_a_model_that_holds_a_sparse_tensor_is_captured_as_without_it():
    model = vit(lambda s, q, k, v: soft(q, k) @ v)
    expected = captured(model)
    model.register_buffer("neighbours", torch.eye(4).to_sparse())
    assert torch.equal(captured(model), expected)
