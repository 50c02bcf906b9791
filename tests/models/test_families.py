"""A smaller model of every family computes what the whole one does with those parts silenced by hand, and opens."""

import json
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import timm
import torch
from torch import nn

from attnprobe.capturing import capture
from attnprobe.core.errors import InputError
from attnprobe.core.evidence import Change
from attnprobe.models import build_model, load_model
from attnprobe.models.ablate import Ablatable
from attnprobe.models.families import family_of
from attnprobe.models.parts import Part, Removal, Smaller, units
from attnprobe.models.prune import smaller_model
from attnprobe.models.torchvision_vit import as_timm

SMALL = {"depth": 4, "embed_dim": 24, "num_heads": 3, "img_size": 32, "patch_size": 8, "num_classes": 5}
TIMM = {
    "vit": ("vit_tiny_patch16_224", SMALL),
    "eva02": ("eva02_tiny_patch14_224", SMALL),
    "dinov3": ("vit_small_patch16_dinov3", {**SMALL, "num_classes": 5}),
    "unfused": ("vit_small_patch16_dinov3", {**SMALL, "qkv_fused": False}),
    "rope": ("vit_small_patch16_rope_224", SMALL),
    "beit": ("beit_base_patch16_224", SMALL),
    "cait": ("cait_xxs24_224", {**SMALL, "depth": 3, "depth_token_only": 2}),
    "swin": ("swin_tiny_patch4_window7_224", {"depths": (2, 4), "embed_dim": 12, "num_heads": (3, 3), "img_size": 64,
                                              "window_size": 4, "num_classes": 5}),
}  # fmt: skip


def perturbed(model):
    """Weights among which nothing is at 0 or 1, where a mistake would not show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model.eval()


def images(side=32):
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(2))


def whole(name):
    architecture, options = TIMM[name]
    return perturbed(build_model(architecture, seed=0, **options))


def blocks_of(model):
    """Every block of the model, found without the package's help."""
    if hasattr(model, "layers"):
        return [block for stage in model.layers for block in stage.blocks]
    return [*model.blocks, *(getattr(model, "blocks_token_only", None) or ())]


@torch.inference_mode()
def silenced(model, removal, pixels):
    """The logits of the whole model with these parts silenced by replacing modules and zeroing weights."""
    from copy import deepcopy

    model = deepcopy(model)
    for number, block in enumerate(blocks_of(model), 1):
        if number in removal.blocks:  # both branches add nothing
            nn.init.zeros_(block.mlp.fc2.weight)
            nn.init.zeros_(block.mlp.fc2.bias)
        if number in removal.blocks or number in removal.attention:
            nn.init.zeros_(block.attn.proj.weight)
            nn.init.zeros_(block.attn.proj.bias)
        width = block.attn.proj.in_features // block.attn.num_heads
        for head in removal.heads.get(number, ()):
            block.attn.proj.weight[:, (head - 1) * width : head * width] = 0
    return model(pixels)


def changes(removal):
    return [
        *(Change("block", block) for block in removal.blocks),
        *(Change("attention", block) for block in removal.attention),
        *(Change("head", block, head) for block, heads in removal.heads.items() for head in heads),
    ]


REMOVALS = {
    "vit": [Removal({2}, {3}, {1: [3], 4: [1, 2]})],
    "eva02": [Removal({2}, {3}, {1: [3], 4: [1, 2]})],
    "dinov3": [Removal({2}, {3}, {1: [3], 4: [1, 2]}), Removal(attention={1, 4})],
    "unfused": [Removal({2}, {3}, {1: [3], 4: [1, 2]})],
    "rope": [Removal({2}, {3}, {1: [3], 4: [1, 2]})],
    "beit": [Removal({2}, {3}, {1: [3], 4: [1, 2]})],
    "cait": [Removal({2, 5}, {3}), Removal((), {4}, {5: [1, 3]})],
    "swin": [Removal({4, 5}, {1}, {2: [2], 3: [1, 3]}), Removal({5, 6}, {2, 3})],
}


@pytest.mark.parametrize(("name", "number"), [(name, k) for name, cases in REMOVALS.items() for k in range(len(cases))])
def test_a_model_of_timms_loses_parts_as_if_they_were_silent_and_timm_opens_the_rest(name, number, tmp_path):
    model, removal = whole(name), REMOVALS[name][number]
    pixels = images(TIMM[name][1]["img_size"])
    expected = silenced(model, removal, pixels)
    smaller = smaller_model(model, removal, *TIMM[name])
    ablatable = Ablatable(model, pixels)
    with torch.inference_mode():
        with ablatable.without(changes(removal)):
            torch.testing.assert_close(ablatable.module(pixels), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(ablatable.module(pixels), model(pixels), rtol=0, atol=1e-5)
        torch.testing.assert_close(smaller.module.eval()(pixels), expected, rtol=0, atol=1e-5)
        assert (expected - model(pixels)).abs().max() > 1e-2, "or nothing is shown"
        for file, content in smaller.files().items():
            (tmp_path / file).write_bytes(content)
        for opened in (timm.create_model(f"local-dir:{tmp_path}", pretrained=True), load_model(tmp_path)):
            torch.testing.assert_close(opened.eval()(pixels), expected, rtol=0, atol=1e-5)
    assert sum(p.numel() for p in smaller.module.parameters()) < sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["dinov3", "swin"])
def test_what_has_lost_parts_can_lose_more(name):
    model = whole(name)
    pixels = images(TIMM[name][1]["img_size"])
    once = smaller_model(model, Removal(attention={2}, heads={1: [2]}), *TIMM[name])
    twice = smaller_model(once.module.eval(), Removal({3, 4} if name == "swin" else {3}, (), {1: [1]}), once.name,
                          once.options)  # fmt: skip
    expected = silenced(model, Removal({3, 4} if name == "swin" else {3}, {2}, {1: [1, 2]}), pixels)
    with torch.inference_mode():
        torch.testing.assert_close(twice.module.eval()(pixels), expected, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="no attention left"):
        smaller_model(once.module, Removal(attention={2}), once.name, once.options)


@pytest.mark.parametrize("name", ["dinov3", "beit", "swin"])
def test_gates_multiply_the_heads_of_each_image(name):
    model = whole(name)
    pixels = images(TIMM[name][1]["img_size"])
    ablatable = Ablatable(model, pixels)
    gates = [torch.ones(3, heads) for heads in ablatable.heads]
    gates[1][2, 0] = 0
    with torch.inference_mode(), ablatable.gated(gates):
        gated = ablatable.module(pixels)
    torch.testing.assert_close(gated[:2], model(pixels)[:2].detach(), rtol=0, atol=1e-5)
    torch.testing.assert_close(gated[2:], silenced(model, Removal(heads={2: [1]}), pixels)[2:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "dinov3", "beit"])
def test_maps_of_the_heads_that_are_left_are_captured_as_those_of_the_whole_model(name):
    model = whole(name)
    smaller = smaller_model(model, Removal(attention={2}, heads={1: [2]}), *TIMM[name]).module.eval()
    first, before = (next(iter(capture(one, images()))) for one in (smaller, model))
    assert first.values.shape[1:3] == (1, 2)  # of the first block
    torch.testing.assert_close(first.values[:, 0], before.values[:, 0, [0, 2]], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "removal", "message"),
    [
        ("cait", Removal(heads={1: [1]}), "heads of TalkingHeadAttn are mixed"),
        ("cait", Removal({4, 5}), "none of blocks 4 to 5, one stage"),
        ("swin", Removal({3}), "depends on its place; blocks alternate"),
        ("swin", Removal({1, 2}), "none of blocks 1 to 2, one stage"),
        ("dinov3", Removal({5}), "no block 5"),
        ("beit", Removal(heads={1: [4]}), "no head 4"),
        ("beit", Removal(heads={1: [1, 2, 3]}), "leave one, or drop the block"),
    ],
)
def test_what_cannot_be_described_is_refused(name, removal, message):
    with pytest.raises(InputError, match=message):
        smaller_model(whole(name), removal, *TIMM[name])


def test_heads_that_share_positions_are_refused():
    options = {**SMALL, "patch_size": 16}
    model = perturbed(build_model("vit_small_patch16_rope_mixed_224", seed=0, **options))
    with pytest.raises(InputError, match="heads of AttentionRope share positions"):
        smaller_model(model, Removal(heads={1: [1]}), "vit_small_patch16_rope_mixed_224", options)


def test_blocks_that_alternate_are_dropped_in_pairs():
    parts = family_of(whole("swin")).parts(whole("swin"))
    assert units(parts, range(1, 7), every=True) == [(1, 2), (3, 4), (5, 6)] and units(parts, [5, 4]) == [(4, 5)]
    assert units(parts, [3, 4, 5], every=True) == [(3, 4)]
    with pytest.raises(InputError, match="block 3 alternates"):
        units(parts, [3, 5])
    assert units(family_of(whole("beit")).parts(whole("beit")), [4, 2]) == [(2,), (4,)]
    with pytest.raises(InputError, match="no block 9"):
        units(parts, [9])


# --- transformers ---------------------------------------------------------------------------------------------------

SIZES = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 48,
         "image_size": 32, "patch_size": 8}  # fmt: skip
HF = {
    "vit": ("ViTForImageClassification", "ViTConfig"),
    "dinov2": ("Dinov2Model", "Dinov2Config"),
    "siglip": ("SiglipVisionModel", "SiglipVisionConfig"),
    "dinov3": ("DINOv3ViTModel", "DINOv3ViTConfig"),
}


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers")


def of_transformers(transformers, name, folder):
    kind, config = (getattr(transformers, part) for part in HF[name])
    more = {"num_labels": 5} if name == "vit" else {}
    model = perturbed(kind(config(**SIZES, **more)))
    model.save_pretrained(folder)
    return load_model(f"hf:{folder}").eval()


def outputs(output):
    return output.logits if "logits" in output else output.last_hidden_state


@pytest.mark.parametrize("name", HF)
def test_a_model_of_transformers_loses_blocks_and_automodel_opens_the_rest(name, transformers, tmp_path):
    model = of_transformers(transformers, name, tmp_path / "whole")
    smaller = smaller_model(model, Removal({2, 4}), "hf", {})
    (tmp_path / "small").mkdir()
    for file, content in smaller.files().items():
        (tmp_path / "small" / file).write_bytes(content)
    layers = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 4)
    handles = [layers[k].register_forward_hook(lambda _m, args, _out: args[0]) for k in (1, 3)]
    with torch.inference_mode():
        expected = outputs(model(images()))
    for handle in handles:
        handle.remove()
    auto = transformers.AutoModelForImageClassification if name == "vit" else transformers.AutoModel
    kind = auto if name != "siglip" else transformers.SiglipVisionModel
    ablatable = Ablatable(model, images())
    with torch.inference_mode():
        with ablatable.without([Change("block", 2), Change("block", 4)]):
            torch.testing.assert_close(outputs(ablatable.module(images())), expected, rtol=0, atol=1e-5)
        for opened in (kind.from_pretrained(tmp_path / "small"), load_model(f"hf:{tmp_path / 'small'}")):
            assert opened.config.num_hidden_layers == 2
            torch.testing.assert_close(outputs(opened.eval()(images())), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "dinov2"])
def test_transformers_heads_go_from_all_blocks_alike_or_not_at_all(name, transformers, tmp_path):
    model = of_transformers(transformers, name, tmp_path / "whole")
    removal = Removal({4}, (), {1: [3], 2: [1], 3: [2]})
    smaller = smaller_model(model, removal, "hf", {})
    (tmp_path / "small").mkdir()
    for file, content in smaller.files().items():
        (tmp_path / "small" / file).write_bytes(content)
    ablatable = Ablatable(model, images())
    with torch.inference_mode():
        with ablatable.without(changes(removal)):
            expected = outputs(ablatable.module(images()))
        opened = load_model(f"hf:{tmp_path / 'small'}").eval()
        torch.testing.assert_close(outputs(opened(images())), expected, rtol=0, atol=1e-5)
    assert (opened.config.num_attention_heads, opened.config.head_dim) == (2, 8)
    with pytest.raises(InputError, match="one number of heads for all blocks"):
        smaller_model(model, Removal(heads={1: [3]}), "hf", {})


def test_what_transformers_cannot_describe_is_refused(transformers, tmp_path):
    model = of_transformers(transformers, "siglip", tmp_path / "whole")
    every = {block: [1] for block in (1, 2, 3, 4)}
    with pytest.raises(InputError, match="SiglipVisionConfig cannot describe"):
        smaller_model(model, Removal(heads=every), "hf", {})
    with pytest.raises(InputError, match="no attention; drop whole blocks"):
        smaller_model(model, Removal(attention={1}), "hf", {})


# --- torchvision and own code ---------------------------------------------------------------------------------------


def test_a_model_of_torchvision_becomes_timms_and_loses_what_that_can(tmp_path):
    from torchvision.models import VisionTransformer

    model = perturbed(VisionTransformer(32, 8, 4, 3, 24, 48, num_classes=5))
    name, options, same = as_timm(model)
    removal = Removal({2}, {3}, {1: [3]})
    smaller = smaller_model(same, removal, name, options)
    layers = model.encoder.layers
    layers[1] = nn.Identity()
    nn.init.zeros_(layers[2].self_attention.out_proj.weight)
    nn.init.zeros_(layers[2].self_attention.out_proj.bias)
    with torch.inference_mode():
        layers[0].self_attention.out_proj.weight[:, 16:24] = 0
        expected = model(images())
        for file, content in smaller.files().items():
            (tmp_path / file).write_bytes(content)
        opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        torch.testing.assert_close(opened(images()), expected, rtol=0, atol=1e-5)
    hidden = VisionTransformer(32, 8, 1, 3, 24, 48, num_classes=5, representation_size=7)
    with pytest.raises(InputError, match="parts that timm's has not"):
        as_timm(hidden)


@dataclass
class OwnFamily:
    """How `Own` is taken apart: blocks go, heads do not."""

    def parts(self, model):
        return [Part(block, block.attention, block.attention.out_proj, 2, "own heads stay") for block in model.stack]

    def smaller(self, model, removal, name, options):
        removal.check(self.parts(model))
        left = [block for k, block in enumerate(model.stack, 1) if k not in removal.blocks]
        copy = Own(len(left))
        copy.stack.load_state_dict(nn.ModuleList(left).state_dict())
        return Smaller(copy, name, {"depth": len(left)}, lambda: {"config.json": json.dumps(len(left)).encode()})


class OwnBlock(nn.Module):
    """Attention alone."""

    def __init__(self):
        super().__init__()
        self.attention = nn.Module()
        self.attention.qkv, self.attention.out_proj = nn.Linear(6, 18), nn.Linear(6, 6)

    def forward(self, x):
        q, k, v = self.attention.qkv(x).unflatten(-1, (3, 2, 3)).permute(2, 0, 3, 1, 4)
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.attention.out_proj(y)


class Own(nn.Module):
    """A model with code of its own, which says how it is taken apart."""

    family = OwnFamily()
    num_classes = 6
    input_spec = SimpleNamespace(size=(2, 8), mean=(0.5,) * 3)

    def __init__(self, depth=3):
        super().__init__()
        self.stack = nn.ModuleList(OwnBlock() for _ in range(depth))

    def forward(self, pixels):
        x = pixels.flatten(1).unflatten(1, (-1, 6))
        for block in self.stack:
            x = block(x)
        return x.mean(1)


def test_a_model_of_own_code_says_how_it_is_taken_apart():
    model = perturbed(Own())
    smaller = smaller_model(model, Removal({2}), "own", {})
    pixels = torch.randn(2, 3, 2, 8)
    ablatable = Ablatable(model, pixels)
    with torch.inference_mode(), ablatable.without([Change("block", 2)]):
        torch.testing.assert_close(smaller.module.eval()(pixels), ablatable.module(pixels), rtol=0, atol=1e-5)
    assert smaller.options == {"depth": 2} and smaller.files() == {"config.json": b"2"}
    assert ablatable.refusal(Change("head", 1, 1)) and not ablatable.refusal(Change("block", 1))
    with pytest.raises(InputError, match="own heads stay"):
        smaller_model(model, Removal(heads={1: [1]}), "own", {})
