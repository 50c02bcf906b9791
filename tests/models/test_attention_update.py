from itertools import product

import numpy as np
import pytest
import timm
import torch
import transformers
from timm.models.swin_transformer import SwinTransformerBlock
from torch import nn

from attnprobe.core.evidence import Change
from attnprobe.metrics import attention_update
from attnprobe.models.ablate import Ablatable
from attnprobe.models.attention_update import attention_updates
from tests.models.test_families import HF, TIMM, blocks_of, images, of_transformers, whole


def scale_of(block):
    """The layer scale of the attention, by the name each family has for it."""
    gamma = getattr(block, "gamma_1", None)
    return getattr(getattr(block, "ls1", None), "gamma", 1.0) if gamma is None else gamma


def unshifted(block, windows, shape):
    """Outputs [window, token, width] of shifted windows, at the places of their tokens [image, row, col, width]."""
    n, rows, cols, width = shape
    side, (down, right) = block.window_size[0], block.shift_size
    found = torch.empty(shape)
    for image, top, left in product(range(n), range(0, rows, side), range(0, cols, side)):
        window = windows[(image * rows // side + top // side) * (cols // side) + left // side].view(side, side, width)
        for row, col in product(range(side), repeat=2):
            found[image, (top + row + down) % rows, (left + col + right) % cols] = window[row, col]
    return found


@torch.inference_mode()
def by_hand(model, blocks, streams, pixels):
    """[image, block] in float64 from what each block's attention gets and returns."""
    seen = []
    handles = [
        block.register_forward_pre_hook(lambda _m, inputs, stream=stream: seen.append([inputs[stream]]))
        for block, stream in zip(blocks, streams, strict=True)
    ]
    handles += [block.attn.register_forward_hook(lambda _m, _a, out: seen[-1].append(out)) for block in blocks]
    model(pixels)
    for handle in handles:
        handle.remove()
    found = np.full((len(pixels), len(blocks)), np.nan)
    for number, (block, (before, out)) in enumerate(zip(blocks, seen, strict=True)):
        if isinstance(block, SwinTransformerBlock):
            out = unshifted(block, out, before.shape)
        after = (before + scale_of(block) * out).double().flatten(1, -2).numpy()
        before = before.double().flatten(1, -2).numpy()
        for image in range(len(pixels)):
            cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y)
                       for x, y in zip(before[image], after[image], strict=True)]  # fmt: skip
            found[image, number] = 1 - np.mean(cosines)
    return found


@pytest.mark.parametrize("name", TIMM)
def test_it_is_the_cosine_of_the_tokens_with_and_without_the_scaled_attention(name):
    model = whole(name)
    pixels = images(64 if name == "swin" else 32)
    only = set(getattr(model, "blocks_token_only", None) or ())
    blocks = blocks_of(model)
    expected = by_hand(model, blocks, [int(block in only) for block in blocks], pixels)
    found = attention_updates(Ablatable(model, pixels), pixels)
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", HF)
def test_models_of_transformers_have_a_number_for_every_block_that_removal_of_attention_brings_to_zero(name, tmp_path):
    model = of_transformers(transformers, name, tmp_path)
    ablatable = Ablatable(model, images())
    found = attention_updates(ablatable, images()).numpy()
    assert (found > 1e-4).all()
    with ablatable.without([Change("attention", 2)]):
        without = attention_updates(ablatable, images()).numpy()
    np.testing.assert_allclose(without[:, 0], found[:, 0], rtol=1e-6)
    assert (np.abs(without[:, 1]) < 1e-12).all() and (np.abs(without[:, 2:] - found[:, 2:]) > 1e-9).all()


def test_a_layer_scale_of_nearly_zero_is_a_change_of_nearly_zero():
    model = timm.create_model("vit_tiny_patch16_224", depth=3, img_size=32, init_values=1e-5).eval()
    found = attention_updates(Ablatable(model, images()), images())
    assert (found.abs() < 1e-6).all()


def test_blocks_whose_sum_is_not_found_and_blocks_without_attention_have_no_number():
    class Odd(nn.Module):
        def __init__(self, block):
            super().__init__()
            self.norm1, self.attn, self.norm2, self.mlp = block.norm1, block.attn, block.norm2, block.mlp

        def forward(self, x, *_):
            x = torch.sin(x + self.attn(self.norm1(x)))  # no sum reaches a module
            return x + self.mlp(self.norm2(x))

    model = whole("vit")
    model.blocks[1] = Odd(model.blocks[1])
    found = attention_updates(Ablatable(model, images()), images()).numpy()
    assert np.isnan(found[:, 1]).all() and np.isfinite(np.delete(found, 1, 1)).all()


def test_the_measurement_is_the_mean_over_images_with_an_interval():
    values = np.random.default_rng(0).uniform(0, 0.5, (4, 3))
    values[:, 1] = np.nan
    m = attention_update(values, "abcd")
    np.testing.assert_allclose(m.mean, values.mean(0))
    assert m.axes == ("layer",) and m.value_range == (0, 2) and "2406.15786" in m.explanation
    assert (m.ci[0] <= m.mean).tolist() == [True, False, True]
