"""Taken away is what a model rebuilt or calculated by hand does not have; afterwards everything is back."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from attnprobe.core.errors import InputError
from attnprobe.core.evidence import Change
from attnprobe.models import VARIANTS, build_model
from attnprobe.models.ablate import Ablatable
from attnprobe.models.parts import Removal
from attnprobe.models.prune import pruned

TINY = {"depth": 4, "embed_dim": 24, "num_heads": 2, "img_size": 16, "patch_size": 8, "num_classes": 5}


def images(n=3):
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(2))


def model_of(variant, **options):
    model = build_model(f"{variant}_16_digits", seed=0, **{**TINY, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # nothing at 0 or 1, where a mistake would not show
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return model


@torch.inference_mode()
def out(model):
    return model(images())


@torch.inference_mode()
def without(model, *changes):
    ablatable = Ablatable(model, images())
    with ablatable.without(changes):
        result = ablatable.module(images())
    torch.testing.assert_close(ablatable.module(images()), model(images()))
    return result


def test_rounding_that_large_scores_amplify_is_no_other_function():
    model = build_model("vit_16_digits", seed=0, img_size=32, patch_size=4, num_classes=3).eval()
    for block in model.blocks:  # rows are nearly one-hot
        block.attn.qkv.weight.data[: 2 * model.embed_dim] *= 40
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    ablatable = Ablatable(model, pixels)
    for block in ablatable.module.blocks:  # somebody listens: maps are computed
        block.attn.taps["effective"].register_forward_hook(lambda *_: None)
    with torch.inference_mode():
        explicit = ablatable.module(pixels)
        assert (explicit - model(pixels)).abs().max() > 1e-4 * explicit.abs().max(), "or nothing is shown"


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_can_lose_parts_and_gets_them_back(variant):
    model = model_of(variant)
    before = out(model)
    for change in (Change("map", 3), Change("attention", 2), Change("block", 4), Change("head", 2, 1)):
        assert not torch.equal(without(model, change), before)
    torch.testing.assert_close(out(model), before, rtol=0, atol=0)


@pytest.mark.parametrize("variant", ["vit", "attnscale", "gated"])
def test_heads_and_blocks_are_missed_as_in_a_model_that_never_had_them(variant):
    model = model_of(variant, num_heads=3)
    torch.testing.assert_close(without(model, Change("head", 2, 3)), out(pruned(model, Removal(heads={2: [3]}))))
    torch.testing.assert_close(without(model, Change("block", 3)), out(pruned(model, Removal(blocks=[3]))))
    several = Change("head", 2, 1), Change("head", 2, 3), Change("head", 4, 2), Change("block", 3)
    expected = pruned(model, Removal(blocks=[3], heads={2: [1, 3], 4: [2]}))
    torch.testing.assert_close(without(model, *several), out(expected))


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_gate_of_one_changes_nothing_and_one_of_zero_silences_the_head_of_that_image(variant):
    model = model_of(variant)
    ablatable = Ablatable(model, images())
    gates = [torch.ones(3, heads) for heads in ablatable.heads]
    gates[1][2, 0] = 0
    with torch.inference_mode(), ablatable.gated(gates):
        gated = ablatable.module(images())
    torch.testing.assert_close(gated[:2], out(model)[:2])
    torch.testing.assert_close(gated[2:], without(model, Change("head", 2, 1))[2:])


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_head_is_its_softmax_map_where_heads_are_mixed_and_its_output_elsewhere(variant):
    model = model_of(variant)
    change = Ablatable(model, images()).head(3, 1)
    assert change.kind == ("softmax" if variant in ("deepvit", "refiner", "talkingheads") else "head")
    assert not torch.equal(without(model, change), out(model))


@torch.inference_mode()
def deepvit_without(model, number, head):
    """The forward pass of a DeepViT in which one softmax map of a block (both from 1) is 0."""
    x = model._pos_embed(model.patch_embed(images()))
    for k, block in enumerate(model.blocks, 1):
        h = block.norm1(x)
        q, key, v = block.attn.qkv(h).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ key.mT / q.shape[-1] ** 0.5).softmax(-1)
        if k == number:
            weights[:, head - 1] = 0
        used = block.attn.var_norm(block.attn.reatten_matrix(weights))
        x = x + block.attn.proj((used @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return model.forward_head(model.norm(x))


def test_without_a_softmax_map_the_others_are_mixed():
    model = model_of("deepvit")
    torch.testing.assert_close(without(model, Change("softmax", 2, 1)), deepvit_without(model, 2, 1))


@pytest.mark.parametrize("variant", ["vit", "deepvit", "layerscale", "refiner"])
def test_skipped_attention_adds_nothing(variant):
    model = model_of(variant)
    zeroed = deepcopy(model)
    nn.init.zeros_(zeroed.blocks[1].attn.proj.weight)
    nn.init.zeros_(zeroed.blocks[1].attn.proj.bias)
    torch.testing.assert_close(without(model, Change("attention", 2)), out(zeroed))


@torch.inference_mode()
def by_hand(model, borrowers):
    """The forward pass of a plain ViT, in which these blocks (from 1) use the previous block's map."""
    x = model._pos_embed(model.patch_embed(images()))
    for number, block in enumerate(model.blocks, 1):
        h = block.norm1(x)
        q, k, v = block.attn.qkv(h).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        if number not in borrowers:
            used = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1)
        x = x + block.attn.proj((used @ v).transpose(1, 2).flatten(2))
        x = x + block.mlp(block.norm2(x))
    return model.forward_head(model.norm(x))


@pytest.mark.parametrize("borrowers", [(2,), (4,), (2, 4), (2, 3, 4)])
def test_a_borrowed_map_multiplies_the_blocks_own_values(borrowers):
    model = model_of("vit")
    changes = [Change("map", block) for block in borrowers]
    torch.testing.assert_close(without(model, *changes), by_hand(model, borrowers))


def test_the_map_that_is_borrowed_is_what_multiplies_v():
    model = model_of("deepvit")
    seen = {}
    ablatable = Ablatable(model, images())
    blocks = ablatable.module.blocks
    handles = [
        blocks[1].attn.taps["effective"].register_forward_hook(lambda _m, _in, y: seen.update(lent=y)),
        blocks[2].attn.proj.register_forward_pre_hook(lambda _m, x: seen.update(output=x[0])),
        blocks[2].attn.register_forward_pre_hook(lambda _m, x: seen.update(input=x[0])),
    ]
    with torch.inference_mode(), ablatable.without([Change("map", 3)]):
        ablatable.module(images())
        values = blocks[2].attn.split(seen["input"])[2]
    torch.testing.assert_close(seen["output"], (seen["lent"] @ values).transpose(1, 2).flatten(2))
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Change("map", 1), "no previous block"),
        (Change("block", 5), "no block 5"),
        (Change("head", 1, 3), "no head 3"),
        (Change("head", 0, 1), "no block 0"),
    ],
)
def test_what_is_not_there_cannot_be_ablated(change, message):
    with pytest.raises(InputError, match=message):
        without(model_of("vit"), change)


def test_models_and_attention_of_others_are_refused():
    with pytest.raises(InputError, match="not built like timm's"):
        Ablatable(nn.Linear(2, 2), images())
    model = model_of("vit")

    class Other(type(model.blocks[0].attn)):
        """Attention that may do anything."""

    model.blocks[2].attn.__class__ = Other
    with pytest.raises(InputError, match="block 3 has Other"):
        Ablatable(model, images())


def test_a_block_that_shares_a_map_has_no_softmax_to_lose():
    with pytest.raises(InputError, match="block 2 uses the previous block.s map"):
        without(model_of("refiner"), Change("softmax", 2, 1))


def test_a_first_block_that_hands_on_is_kept():
    with pytest.raises(InputError, match="passes on"):
        without(model_of("refiner"), Change("block", 1))
