"""Towers and views in one forward pass are stages of their own, and shared weights are layers."""

import pytest
import torch
from torch import nn

import attnprobe as ap
from attnprobe.capturing.towers import Tower, tower_names
from tests.capturing.test_layouts import PIXELS, ViT, maps_by_hand, soft, vit


def plain(s, q, k, v):
    return soft(q, k) @ v


def two(first, second):
    """Two models of one shape, of different weights."""
    for p in second.parameters():
        p.data.mul_(1.5)
    return first, second


class StudentTeacher(nn.Module):
    def __init__(self):
        super().__init__()
        self.student, self.teacher = two(vit(plain), vit(plain))

    def forward(self, x):
        return self.student(x) - self.teacher(x)


def by_stage(model, **options):
    return {maps.stage: maps for maps in ap.capture(model, PIXELS, "weights", **options)}


def test_student_and_teacher_are_two_trunks():
    model = StudentTeacher().eval()
    stages = by_stage(model)
    assert list(stages) == ["student", "teacher"]
    for name, maps in stages.items():
        assert maps.layers == tuple(f"{name}.blocks.{i}" for i in range(3))
        torch.testing.assert_close(maps.values, maps_by_hand(getattr(model, name)), rtol=0, atol=1e-6)


def test_towers_in_a_list_are_two_trunks():
    class Ensemble(nn.Module):
        def __init__(self):
            super().__init__()
            self.towers = nn.ModuleList(two(vit(plain), vit(plain)))

        def forward(self, x):
            return sum(tower(x) for tower in self.towers)

    stages = by_stage(Ensemble().eval())
    assert [maps.values.shape[1] for maps in stages.values()] == [3, 3]
    assert list(stages) == ["towers_0", "towers_1"]


def test_two_calls_of_one_tower_are_two_views_and_the_mirrored_one_has_its_tokens_where_the_image_is():
    class Flipped(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = vit(plain)

        def forward(self, x):
            return self.net(x) + self.net(x.flip(-1))

    model = Flipped().eval()
    capturing = ap.capture(model, PIXELS, "weights")
    one, other = capturing
    assert (one.stage, other.stage) == ("view1", "view2")
    torch.testing.assert_close(one.values, maps_by_hand(model.net), rtol=0, atol=1e-6)
    assert (one.grid.rows, one.grid.cols) == (4, 4) and one.grid.positions is None
    assert other.grid.positions == (-1, *torch.arange(16).view(4, 4).flip(-1).flatten().tolist())
    (alone,) = ap.capture(model.net, PIXELS.flip(-1), "weights")
    torch.testing.assert_close(other.values, alone.values, rtol=0, atol=1e-6)


def test_a_trunk_that_runs_twice_without_a_module_around_it_is_two_views():
    class Twice(ViT):
        def forward(self, x):
            return super().forward(x) + super().forward(x.flip(-2))

    model = Twice(lambda i: vit(plain).blocks[i]).eval()
    assert [(maps.stage, maps.values.shape[1]) for maps in ap.capture(model, PIXELS)] == [("view1", 3), ("view2", 3)]


PARTS = {
    "frames, one after the other": (lambda net, x: sum(net(frame) for frame in x.unbind(1)), (2, 4, 3, 32, 32), 4),
    "frames behind channels": (lambda net, x: sum(net(frame) for frame in x.unbind(2)), (2, 3, 4, 32, 32), 4),
    "two images side by side in channels": (lambda net, x: net(x[:, :3]) - net(x[:, 3:]), (2, 6, 32, 32), 2),
    "one image of each three": (lambda net, x: net(x[:, 3:6]), (2, 9, 32, 32), 1),
}


@pytest.mark.parametrize("case", PARTS)
def test_each_image_that_an_input_holds_is_a_view_of_its_own(case):
    join, shape, n_views = PARTS[case]

    class Several(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = vit(plain)

        def forward(self, x):
            return join(self.net, x)

    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    views = list(ap.capture(Several().eval(), pixels, "weights"))
    assert [view.values.shape[1] for view in views] == [3] * n_views
    seen = []
    net = Several().eval().net
    join(lambda images: (seen.append(images), net(images))[1], pixels)
    for view, images in zip(views, seen, strict=True):
        (alone,) = ap.capture(net, images, "weights")
        torch.testing.assert_close(view.values, alone.values, rtol=0, atol=1e-6)


def test_one_block_that_is_called_again_and_again_is_as_many_layers():
    model = vit(plain)
    model.blocks = nn.ModuleList([model.blocks[0]] * 3)
    (maps,) = ap.capture(model, PIXELS, "weights")
    assert maps.stage == "trunk" and maps.layers == ("blocks.0", "blocks.0#2", "blocks.0#3")
    given, wanted = [], []
    hook = model.blocks[0].register_forward_pre_hook(lambda _m, args: given.append(args[0]))
    with torch.no_grad():
        model(PIXELS)
        hook.remove()
        for x in given:
            q, k, _ = model.blocks[0].split(x)
            wanted.append(soft(q, k))
    torch.testing.assert_close(maps.values, torch.stack(wanted, 1), rtol=0, atol=1e-6)


def test_encoder_and_decoder_of_equal_lengths_are_two_trunks():
    class EncoderDecoder(ViT):
        def __init__(self):
            super().__init__(lambda i: vit(plain).blocks[i])
            self.decoder_blocks = nn.ModuleList([vit(plain).blocks[i] for i in range(2)])

        def forward(self, x):
            tokens = self.embed(x).flatten(2).mT
            for block in (*self.blocks, *self.decoder_blocks):
                tokens = tokens + block(tokens)
            return tokens.mean(1)

    stages = by_stage(EncoderDecoder().eval())
    assert {name: len(maps.layers) for name, maps in stages.items()} == {"blocks": 3, "decoder_blocks": 2}


def test_towers_are_named_by_what_tells_them_apart():
    shape, other = ("self", 17, 3), ("self", 5, 3)
    assert tower_names([(shape, Tower("", "blocks")), (other, Tower("", "late"))]) == ["", ""]
    assert tower_names([(shape, Tower("", "blocks")), (shape, Tower("", "late"))]) == ["blocks", "late"]
    assert tower_names([(shape, Tower("a.enc", "x")), (other, Tower("b", "x"))]) == ["a_enc", "b"]
    assert tower_names([(shape, Tower("", "x")), (shape, Tower("", "x", 2))]) == ["view1", "view2"]


class Detector(nn.Module):
    """An encoder over 16 patches and a decoder of 16 learned queries, of PyTorch's own layers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Conv2d(3, 48, 8, 8)
        options = {"dim_feedforward": 48, "dropout": 0.0, "batch_first": True}
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(48, 3, **options), 2, enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(48, 3, **options), 2)
        self.queries = nn.Parameter(torch.randn(1, 16, 48))

    def forward(self, x):
        memory = self.encoder(self.embed(x).flatten(2).mT)
        return self.decoder(self.queries.expand(len(x), -1, -1), memory).mean(1)


def test_a_decoder_with_as_many_queries_as_patches_is_three_stages():
    model = Detector().eval()
    stages = by_stage(model)
    kinds = {name: (maps.kind, len(maps.layers), maps.grid.rows) for name, maps in stages.items()}
    assert kinds == {"encoder": ("self", 2, 4), "decoder_self": ("self", 2, 0), "decoder_cross": ("cross", 2, 4)}
    seen = []
    layers = [layer.multihead_attn for layer in model.decoder.layers]
    hooks = [
        m.register_forward_pre_hook(lambda _m, args, kw: seen.append((args, kw)), with_kwargs=True) for m in layers
    ]
    with torch.no_grad():
        model(PIXELS)
        for hook in hooks:
            hook.remove()
        wanted = []
        for module, ((query, key, *_), _) in zip(layers, seen, strict=True):
            q, k, _ = torch.nn.functional._in_projection_packed(
                query, key, key, module.in_proj_weight, module.in_proj_bias
            )
            q, k = (x.unflatten(-1, (3, 16)).transpose(1, 2) for x in (q, k))
            wanted.append(soft(q * 16**-0.5, k))
    torch.testing.assert_close(stages["decoder_cross"].values, torch.stack(wanted, 1), rtol=0, atol=1e-6)
