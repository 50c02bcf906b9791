"""Models in which a map is easily filed under the wrong image, place, layer or kind."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import attnprobe as ap
from attnprobe.core.errors import CaptureError
from tests.capturing.test_layouts import PIXELS, Attention, ViT, maps_by_hand, soft, vit


def plain(s, q, k, v):
    return soft(q, k) @ v


def certificate(model, pixels=PIXELS):
    return ap.capture(model, pixels).certificate


class Dealt(ViT):
    """Images run in two parts, every second one in each, and leave in the order in which they came."""

    def forward(self, x):
        places = torch.arange(len(x))
        order = torch.cat([places[::2], places[1::2]])
        return super().forward(x[order])[order.argsort()]


def test_images_that_change_places_in_larger_batches_alone_are_refused():
    pixels = torch.rand(8, 3, 32, 32, generator=torch.manual_seed(3))
    model = Dealt(lambda _: Attention(plain)).eval()
    with pytest.raises(CaptureError, match="order of images inside.*batch_size=2"):
        list(ap.capture(model, pixels))
    found = torch.cat([maps.values for maps in ap.capture(model, pixels, batch_size=2)])
    straight = ViT(lambda _: Attention(plain)).eval()
    straight.load_state_dict(model.state_dict())
    torch.testing.assert_close(found, torch.cat([maps.values for maps in ap.capture(straight, pixels)]))


class Changed(ViT):
    """A ViT behind something that is done to the batch of images."""

    def __init__(self, change):
        super().__init__(lambda _: Attention(plain))
        self.change = change

    def forward(self, x):
        return super().forward(self.change(x))[: len(x)]


def padded(x):
    return torch.cat([x, x.new_zeros(-len(x) % 8, *x.shape[1:])])


BATCHES = {
    "padded to eight": (padded, "does not change with it.*pad the batch"),
    "a blank image for each": (lambda x: torch.cat([x, torch.zeros_like(x)]), "does not change with it"),
    "two more images": (lambda x: torch.cat([x, torch.ones_like(x[:1]).repeat(2, 1, 1, 1)]), "does not change with it"),
    "without the first": (lambda x: torch.cat([x[:1], x[1:] - 0.5 * x[:1]]), "changes when only the first one does"),
    "without the last": (lambda x: x - 0.5 * x[-1:], "depends on the other images"),
    "normalised by the batch": (lambda x: x / x.std((0, 2, 3), keepdim=True), "depends on the other images"),
}


@pytest.mark.parametrize("name", BATCHES)
def test_maps_that_are_of_no_single_image_are_refused(name):
    change, reason = BATCHES[name]
    with pytest.raises(CaptureError, match=reason):
        list(ap.capture(Changed(change).eval(), PIXELS))


class Across(nn.Module):
    """nn.MultiheadAttention that is given [image, token, width] and takes [token, image, width]."""

    def __init__(self):
        super().__init__()
        self.mha = nn.MultiheadAttention(48, 3)

    def forward(self, x):
        return self.mha(x, x, x, need_weights=False)[0]


@pytest.mark.parametrize("n_images", [4, 17])
def test_attention_from_image_to_image_is_refused_also_of_as_many_images_as_tokens(n_images):
    model = ViT(lambda _: Across()).eval()
    with pytest.raises(CaptureError, match="attends across images.*batch_first=True"):
        list(ap.capture(model, torch.randn(n_images, 3, 32, 32), batch_size=32))


class Whole(nn.Module):
    """A block of attention and an MLP that TorchScript can compile."""

    def __init__(self):
        super().__init__()
        self.qkv, self.mlp = nn.Linear(48, 144), nn.Sequential(nn.Linear(48, 48), nn.GELU())

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return self.mlp((q @ k.transpose(-2, -1)).softmax(-1) @ v)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")
def test_a_scripted_stem_or_mlp_is_passed_over_and_a_scripted_block_named():
    model = ViT(lambda _: Whole()).eval()
    (maps,) = ap.capture(model, PIXELS)
    model.embed, model.blocks[1].mlp = torch.jit.script(model.embed), torch.jit.script(model.blocks[1].mlp)
    (found,) = ap.capture(model, PIXELS)
    assert torch.equal(found.values, maps.values)
    model.blocks[1] = torch.jit.script(model.blocks[1])
    with pytest.raises(CaptureError, match=r"show no attention map: blocks\.1"):
        list(ap.capture(model, PIXELS))


class Sharing(nn.Module):
    """A block whose attention module may be another block's, too."""

    def __init__(self, attention):
        super().__init__()
        self.attn = attention

    def forward(self, x):
        return self.attn(x)


def test_attention_that_all_blocks_share_has_a_map_in_each():
    shared = Attention(plain)
    model, copied = ViT(lambda _: Sharing(shared)).eval(), ViT(lambda _: Attention(plain)).eval()
    for block in copied.blocks:
        block.load_state_dict(shared.state_dict())
    (maps,), (expected,) = (ap.capture(each, PIXELS, "weights") for each in (model, copied))
    assert maps.layers == ("blocks.0.attn", "blocks.0.attn#2", "blocks.0.attn#3")
    torch.testing.assert_close(maps.values, expected.values)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("kernel", "padding"), [(16, 4), (12, 2), (8, 0)])
def test_patches_that_overlap_are_as_large_as_they_move_by(kernel, padding, seed):
    model = ViT(lambda _: Attention(plain), depth=1).eval()
    model.embed = nn.Conv2d(3, 48, kernel, 8, padding)
    torch.manual_seed(seed)
    nn.init.normal_(model.embed.weight, std=0.1)
    place = certificate(model).located.places["blocks.0"]
    assert place.status == "proved" and (place.grid.rows, place.grid.patch) == (4, (8, 8))


class Frames(nn.Module):
    """A video of four tubes of 4 x 4 patches, whose tokens attend within their own tube."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.head = nn.Conv3d(3, 48, (2, 8, 8), (2, 8, 8)), nn.Linear(48, 10)
        self.blocks = nn.ModuleList(Attention(plain) for _ in range(2))

    def forward(self, x):
        x = self.embed(x).flatten(3).permute(0, 2, 3, 1)  # [video, tube, patch, width]
        for block in self.blocks:
            x = x + block(x.flatten(0, 1)).unflatten(0, x.shape[:2])
        return self.head(x.mean((1, 2)))


def test_tokens_of_a_videos_tubes_are_on_no_grid_of_the_image():
    video = torch.randn(2, 3, 8, 32, 32, generator=torch.manual_seed(1))
    capturing = ap.capture(Frames().eval(), video)
    assert [(maps.values.shape, maps.grid.rows) for maps in capturing] == [((2, 2, 3, 64, 16), 0)]
    assert {place.status for place in capturing.certificate.located.places.values()} == {"unknown"}


class Stepwise(ViT):
    """Tokens are changed by `between` after the first block."""

    def __init__(self, between):
        super().__init__(lambda _: Attention(plain))
        self.between = between

    def forward(self, x):
        x = self.embed(x).flatten(2).mT
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos
        for i, block in enumerate(self.blocks):
            x = x + block(x)
            x = torch.cat([x[:, :1], self.between(x[:, 1:])], 1) if i == 0 else x
        return self.head(x[:, 0])


def chosen(x, order):
    return x.gather(1, order[..., None].expand(-1, -1, x.shape[-1]))


STEPS = {
    "tokens are sorted": lambda x: chosen(x, x.norm(dim=-1).argsort(1)),
    "tokens are reversed": lambda x: x.flip(1),
    "rows and columns are exchanged": lambda x: x.unflatten(1, (4, 4)).transpose(1, 2).flatten(1, 2),
    "tokens are dropped": lambda x: chosen(x, x.norm(dim=-1).topk(9, 1).indices),
    "neighbours are merged": lambda x: (x[:, ::2] + x[:, 1::2]) / 2,
}


@pytest.mark.parametrize("name", STEPS)
def test_no_place_is_claimed_for_tokens_that_moved_inside_the_model(name):
    model = Stepwise(STEPS[name]).eval()
    assert all(maps.grid.rows == 0 for maps in ap.capture(model, PIXELS) if "blocks.1" in maps.layers)


class Merging(timm.models.vision_transformer.Block):
    """A block of timm's whose two first tokens after the class token become one behind its attention."""

    def forward(self, x, **_):
        x = x + self.attn(self.norm1(x))
        x = torch.cat([x[:, :1], (x[:, 1:2] + x[:, 2:3]) / 2, x[:, 3:]], 1)
        return x + self.mlp(self.norm2(x))


def test_a_timm_model_whose_blocks_merge_tokens_has_a_stage_for_each_number_of_tokens():
    model = timm.create_model("vit_tiny_patch16_224", img_size=48, depth=3).eval()
    for block in model.blocks:
        block.__class__ = Merging
    stages = list(ap.capture(model, torch.randn(2, 3, 48, 48)))
    assert [maps.values.shape[-2:] for maps in stages] == [(10, 10), (9, 9), (8, 8)]
    assert [maps.grid.rows for maps in stages] == [3, 0, 0], "no place is claimed for merged tokens"


def test_tokens_that_stay_are_proved_in_every_layer():
    places = certificate(Stepwise(lambda x: 1.1 * x).eval()).located.places
    assert {place.status for place in places.values()} == {"proved"}


@pytest.mark.parametrize("turn", [lambda x: x.mT, lambda x: x.flip(-2)])
def test_a_model_that_turns_the_image_has_its_tokens_where_the_image_is(turn):
    class Turned(ViT):
        def forward(self, x):
            return super().forward(turn(x))

    (maps,) = ap.capture(Turned(lambda _: Attention(plain)).eval(), PIXELS)
    patches = turn(torch.arange(16).view(1, 4, 4)).flatten().tolist()
    assert maps.grid == ap.TokenGrid(4, 4, ("cls",), (8, 8), (-1, *patches))


class ChannelAttention(Attention):
    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 4, 1)
        return self.proj((soft(F.normalize(q, dim=-1), F.normalize(k, dim=-1)) @ v).permute(0, 3, 1, 2).flatten(2))


def test_channels_that_are_as_many_as_tokens_are_channels():
    model = ViT(lambda _: ChannelAttention(plain, width=51), width=51).eval()  # 17 tokens, heads of 17 channels
    (maps,) = ap.capture(model, PIXELS, "weights")
    assert maps.kind == "channel" and maps.values.shape == (4, 3, 3, 17, 17)
    square = ViT(lambda _: Attention(plain, width=51), width=51).eval()
    assert [maps.kind for maps in ap.capture(square, PIXELS)] == ["self"]


class Folded(nn.Module):
    """Heads in the first axis, before the images or behind them."""

    def __init__(self, heads_first):
        super().__init__()
        self.qkv, self.num_heads, self.heads_first = nn.Linear(48, 144), 3, heads_first

    def split(self, x):
        q, k, v = (y.unflatten(-1, (3, 16)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        return 0.25 * q, k, v

    def forward(self, x):
        q, k, v = (y.transpose(0, 1) if self.heads_first else y for y in self.split(x))
        y = torch.bmm(soft(q.flatten(0, 1), k.flatten(0, 1)), v.flatten(0, 1)).unflatten(0, q.shape[:2])
        return (y.transpose(0, 1) if self.heads_first else y).transpose(1, 2).flatten(2)


def test_heads_behind_images_are_read_and_heads_before_images_refused():
    model = ViT(lambda _: Folded(False)).eval()
    (maps,) = ap.capture(model, PIXELS, "weights")
    torch.testing.assert_close(maps.values, maps_by_hand(model), rtol=0, atol=1e-6)
    with pytest.raises(CaptureError, match="heads or windows before images"):
        list(ap.capture(ViT(lambda _: Folded(True)).eval(), PIXELS))


@pytest.mark.parametrize("swap", [lambda x: x.roll(1, 0), lambda x: x.flip(0)])
def test_images_that_change_places_inside_are_refused(swap):
    class Swapped(ViT):
        def forward(self, x):
            return super().forward(swap(x))

    with pytest.raises(CaptureError, match="rows are not one image's"):
        list(ap.capture(Swapped(lambda _: Attention(plain)).eval(), PIXELS))


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_loop_over_parts_of_the_batch_is_refused(at_once):
    class Loop(ViT):
        def forward(self, x):
            return torch.cat([super(Loop, self).forward(part) for part in x.split(at_once)])

    with pytest.raises(CaptureError):
        list(ap.capture(Loop(lambda _: Attention(plain)).eval(), PIXELS))


def test_a_forward_pass_that_differs_each_time_is_refused():
    class Dropping(Attention):
        def forward(self, x):
            q, k, v = self.split(x)
            return self.proj((F.dropout(soft(q, k), 0.3, training=True) @ v).transpose(1, 2).flatten(2))

    with pytest.raises(CaptureError, match="deterministic"):
        list(ap.capture(ViT(lambda _: Dropping(plain)).eval(), PIXELS))


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace")
def test_a_scripted_block_among_others_is_named():
    class Attend(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(48, 144)

        def forward(self, x):
            q, k, v = self.qkv(x).chunk(3, -1)
            return (q @ k.transpose(-2, -1)).softmax(-1) @ v

    model = vit(plain)
    model.blocks[1] = torch.jit.trace(Attend().eval(), torch.randn(2, 17, 48))
    with pytest.raises(CaptureError, match=r"blocks\.1"):
        list(ap.capture(model, PIXELS))


def test_a_model_in_train_mode_is_captured_in_eval_mode_and_left_in_train_mode():
    class Normed(ViT):
        def __init__(self):
            super().__init__(lambda _: Attention(plain))
            self.bn = nn.BatchNorm2d(3)

        def forward(self, x):
            return super().forward(self.bn(x))

    model = Normed().train()
    (maps,) = ap.capture(model, PIXELS, "weights")
    assert model.training and model.bn.training and int(model.bn.num_batches_tracked) == 0
    torch.testing.assert_close(maps.values, maps_by_hand(model.eval()), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pixels", [PIXELS[:1], PIXELS[:1].repeat(3, 1, 1, 1), torch.zeros(2, 3, 32, 32)])
def test_one_image_equal_images_and_black_images_give_their_maps_and_places(pixels):
    model = vit(plain)
    capturing = ap.capture(model, pixels, "weights")
    (maps,) = capturing
    assert capturing.certificate.located.images_proved == (len(pixels) > 1) and maps.grid.rows == 4
    with torch.no_grad():
        x = model.embed(pixels).flatten(2).mT
        x = torch.cat([model.cls_token.expand(len(x), -1, -1), x], 1) + model.pos
        q, k, _ = model.blocks[0].split(model.norms[0](x))
    torch.testing.assert_close(maps.values[:, 0], soft(q, k), rtol=0, atol=1e-6)


def test_an_early_exit_has_the_layers_that_ran():
    class Exit(ViT):
        def forward(self, x):
            x = self.embed(x).flatten(2).mT
            for block in self.blocks[:2]:
                x = x + block(x)
            return self.head(x.mean(1))

    (maps,) = ap.capture(Exit(lambda _: Attention(plain)).eval(), PIXELS)
    assert maps.layers == ("blocks.0", "blocks.1")


def test_the_image_axis_may_change_from_block_to_block():
    class Block(nn.Module):
        def __init__(self, first):
            super().__init__()
            self.first, self.attend = first, nn.MultiheadAttention(48, 3, batch_first=not first)

        def forward(self, x):
            x = x.transpose(0, 1) if self.first else x
            y = self.attend(x, x, x, need_weights=False)[0]
            return y.transpose(0, 1) if self.first else y

    pixels = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    mixed, twin = (ViT(lambda i, first=first: Block(first and i == 1)).eval() for first in (True, False))
    twin.load_state_dict(mixed.state_dict())
    (ours,), (theirs,) = (ap.capture(model, pixels, "weights", tokens=True) for model in (mixed, twin))
    torch.testing.assert_close(ours.values, theirs.values, rtol=0, atol=1e-6)
    torch.testing.assert_close(ours.tokens, theirs.tokens, rtol=0, atol=1e-5)


def online(s, q, k, v):
    parts = [((q @ keys.mT).exp(), values) for keys, values in zip(k.split(6, 2), v.split(6, 2), strict=True)]
    return sum(part @ values for part, values in parts) / sum(part.sum(-1, keepdim=True) for part, _ in parts)


def test_a_softmax_over_parts_of_the_keys_is_refused():
    with pytest.raises(CaptureError, match="its 17 keys in 3 parts"):
        list(ap.capture(vit(online), PIXELS))


class Linformer(Attention):
    """Keys and values are mixtures of all tokens."""

    def __init__(self, n_keys):
        super().__init__(plain)
        self.mixing = nn.Linear(17, n_keys)

    def split(self, x):
        q, k, v = super().split(x)
        return q, self.mixing(k.mT).mT, self.mixing(v.mT).mT


@pytest.mark.parametrize("n_keys", [5, 17])
def test_mixtures_of_all_tokens_are_in_no_grid_even_if_they_are_as_many(n_keys):
    (maps,) = ap.capture(ViT(lambda _: Linformer(n_keys)).eval(), PIXELS)
    assert maps.values.shape == (4, 3, 3, 17, n_keys) and maps.grid.rows == 0


def test_learnt_queries_that_are_as_many_as_patches_are_in_no_grid():
    class Perceiver(ViT):
        def __init__(self):
            super().__init__(lambda _: Attention(plain))
            self.queries, self.cross = (
                nn.Parameter(torch.randn(1, 16, 48)),
                nn.MultiheadAttention(48, 3, batch_first=True),
            )

        def forward(self, x):
            x, y = self.embed(x).flatten(2).mT, self.queries.expand(len(x), -1, -1)
            y = y + self.cross(y, x, x, need_weights=False)[0]
            for block in self.blocks:
                y = y + block(y)
            return y.mean(1)

    kinds = {maps.kind: maps.grid.rows for maps in ap.capture(Perceiver().eval(), PIXELS)}
    assert kinds == {"cross": 4, "self": 0}


def test_attention_among_the_heads_of_each_token_is_of_channels():
    class AmongHeads(Attention):
        def forward(self, x):
            q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 1, 3, 4)
            return self.proj((soft(q, k) @ v).flatten(2))

    (maps,) = ap.capture(ViT(lambda _: AmongHeads(plain)).eval(), PIXELS)
    assert (maps.kind, maps.values.shape[-2:]) == ("channel", (3, 3))


def test_a_model_that_crops_has_its_tokens_in_the_middle_of_the_image():
    class Cropping(ViT):
        def forward(self, x):
            return super().forward(F.interpolate(x[..., 8:24, 8:24], scale_factor=2))

    (maps,) = ap.capture(Cropping(lambda _: Attention(plain)).eval(), PIXELS)
    inside = torch.arange(64).view(8, 8)[2:6, 2:6].flatten().tolist()
    assert maps.grid == ap.TokenGrid(8, 8, ("cls",), (4, 4), (-1, *inside))


def test_mask_tokens_in_the_places_of_patches_have_none_since_no_pixel_moves_them():
    class Masked(ViT):
        def forward(self, x):
            x = self.embed(x).flatten(2).mT
            x = torch.where((torch.arange(16) % 3 == 0)[:, None], self.cls_token, x) + self.pos[:, 1:]
            for block in self.blocks:
                x = x + block(x)
            return x.mean(1)

    (maps,) = ap.capture(Masked(lambda _: Attention(plain)).eval(), PIXELS)
    assert maps.grid.positions == tuple(-1 if i % 3 == 0 else i for i in range(16))
