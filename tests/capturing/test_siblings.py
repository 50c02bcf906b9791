"""Nothing missing unsaid: blocks without a map beside blocks that have one are named, and hybrids are whole."""

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelThingsBlock, VisionTransformer
from torch import nn

import attnprobe as ap
from attnprobe.core.errors import CaptureError
from tests.capturing.test_layouts import PIXELS, Attention, ViT, soft


def mul_and_sum(s, q, k, v):
    return (soft(q, k).unsqueeze(-1) * v.unsqueeze(2)).sum(3)


def linear(s, q, k, v):
    return (q.relu() + 0.1) @ ((k.relu() + 0.1).mT @ v)


def plain(s, q, k, v):
    return soft(q, k) @ v


class Mixer(Attention):
    """Attention under a name that does not say so."""


class Block(nn.Module):
    def __init__(self, attn, width=48):
        super().__init__()
        self.norm, self.attn, self.mlp = nn.LayerNorm(width), attn, nn.Linear(width, width)

    def forward(self, x):
        x = x + self.attn(self.norm(x))
        return x + self.mlp(x)


class OtherBlock(Block):
    """A block of another class, whose module has another name."""

    def __init__(self, attn, width=48):
        super().__init__(attn, width)
        del self.attn
        self.mixer = attn

    def forward(self, x):
        return x + self.mlp(x + self.mixer(self.norm(x)))


class TokenMLP(nn.Module):
    def __init__(self, tokens=17):
        super().__init__()
        self.mix = nn.Linear(tokens, tokens)

    def forward(self, x):
        return self.mix(x.mT).mT


class Gate(nn.Module):
    """Squeeze and excitation: channels are weighted by numbers made of the image."""

    def __init__(self, width=48):
        super().__init__()
        self.down, self.up = nn.Linear(width, 8), nn.Linear(8, width)

    def forward(self, x):
        return x * self.up(self.down(x.mean(1, keepdim=True)).relu()).sigmoid()


def trunk(*blocks, container=nn.ModuleList):
    model = ViT(lambda _: nn.Identity())
    model.blocks = container(*blocks) if container is nn.Sequential else container(blocks)
    model.norms = nn.ModuleList([nn.Identity() for _ in blocks])
    return model.eval()


UNSEEN = {
    "multiplied and summed": lambda: [Block(Mixer(plain)), Block(Mixer(mul_and_sum))],
    "linear": lambda: [Block(Mixer(plain)), Block(Mixer(linear))],
    "in a block of another class": lambda: [Block(Attention(plain)), OtherBlock(Mixer(linear))],
    "as the block itself": lambda: [Mixer(plain), Mixer(linear)],
}


@pytest.mark.parametrize("container", [nn.ModuleList, nn.Sequential])
@pytest.mark.parametrize("name", UNSEEN)
def test_blocks_without_a_map_are_named(name, container):
    model = trunk(*UNSEEN[name](), *UNSEEN[name](), container=container)
    with pytest.raises(CaptureError, match=r"2 of the blocks next to .*: blocks\.1.*, blocks\.3.*allow-missing"):
        list(ap.capture(model, PIXELS))
    capturing = ap.capture(model, PIXELS, allow_missing=True)
    assert [layer.partition(".attn")[0] for maps in capturing for layer in maps.layers] == ["blocks.0", "blocks.2"]
    assert [name[:8] for name in capturing.certificate.missing] == ["blocks.1", "blocks.3"]


@pytest.mark.parametrize("mixer", [TokenMLP, Gate, nn.Identity, lambda: nn.Conv1d(17, 17, 3, padding=1)])
@pytest.mark.parametrize("block", [Block, OtherBlock])
def test_blocks_that_are_no_attention_by_design_are_not_missing(block, mixer):
    model = trunk(Block(Attention(plain)), block(mixer()), Block(Attention(plain)))
    capturing = ap.capture(model, PIXELS)
    assert [maps.layers for maps in capturing] == [("blocks.0.attn", "blocks.2.attn")]
    assert capturing.certificate.missing == ()


def test_feed_forward_modules_beside_attention_in_a_list_are_not_missing():
    class Layers(nn.Module):
        def __init__(self):
            super().__init__()
            feed = [nn.Sequential(nn.Linear(48, 48), nn.GELU(), nn.Linear(48, 48)) for _ in range(2)]
            self.layers = nn.ModuleList([nn.ModuleList([Attention(plain), f]) for f in feed])

        def forward(self, x):
            for attend, feed in self.layers:
                x = x + attend(x)
                x = x + feed(x)
            return x

    model = trunk(Layers())
    assert [len(maps.layers) for maps in ap.capture(model, PIXELS)] == [2]


@pytest.mark.parametrize(
    "name, options",
    [
        ("efficientformerv2_s0", {}),
        ("caformer_s18", {}),
        ("coatnet_nano_rw_224", {}),
        ("maxvit_pico_rw_256", {"img_size": 64, "depths": (1, 1), "embed_dim": (32, 64)}),
        ("mobilevit_xxs", {}),
        ("edgenext_xx_small", {}),
    ],
)
def test_hybrids_with_stages_of_convolutions_are_whole(name, options):
    model = timm.create_model(name, num_classes=3, **options).eval()
    side = options.get("img_size", model.default_cfg["input_size"][-1])
    with torch.no_grad():
        assert ap.capture(model, torch.randn(2, 3, side, side)).certificate.missing == ()


def test_attention_modules_side_by_side_in_a_block_are_layers_of_their_own_and_named():
    options = {"img_size": 32, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 5}
    model = VisionTransformer(**options, block_fn=ParallelThingsBlock).eval()
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match="side by side in one block"):
        capturing = ap.capture(model, images)
        (maps,) = capturing
    assert len(maps.layers) == 6
    assert capturing.certificate.located.parallel == tuple(f"blocks.{i}.attns.1.attn" for i in range(3))
    sequential = VisionTransformer(**options).eval()
    assert ap.capture(sequential, images).certificate.located.parallel == ()
