"""Every operation against Pillow's, on photographs."""

import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from timm.data import auto_augment as timm_ops

from attnprobe.training.pixel_ops import AFFINE_OPS, PIXEL_OPS, apply_chosen, warp
from tests.training.photos import as_bytes, photographs

PICTURES = photographs()
PIXELS = as_bytes(PICTURES)
FILL = (10, 128, 200)

POINTWISE = {
    "autocontrast": (timm_ops.auto_contrast, [None]),
    "brightness": (timm_ops.brightness, [0.1, 0.7, 1.9]),
    "color": (timm_ops.color, [0.0, 0.1, 1.9]),
    "contrast": (timm_ops.contrast, [0.1, 0.7, 1.9]),
    "equalize": (timm_ops.equalize, [None]),
    "invert": (timm_ops.invert, [None]),
    "posterize": (timm_ops.posterize, [1, 3, 4, 8]),
    "sharpness": (timm_ops.sharpness, [0.0, 0.7, 1.9]),
    "solarize": (timm_ops.solarize, [0, 26, 128, 256]),
    "solarize_add": (timm_ops.solarize_add, [0, 55, 110]),
}
MAPPED = {
    "rotate": (timm_ops.rotate, [-30, 7, 20]),
    "shear_x": (timm_ops.shear_x, [-0.3, 0.1]),
    "shear_y": (timm_ops.shear_y, [-0.3, 0.1]),
    "translate_x": (timm_ops.translate_x_rel, [-0.45, 0.13]),
    "translate_y": (timm_ops.translate_y_rel, [-0.45, 0.13]),
}


def ours(name, amount, pixels=PIXELS, interpolation="bilinear"):
    n = len(pixels)
    amounts = torch.full((n,), float(amount or 0), dtype=torch.float64)
    fill = torch.tensor(FILL)
    return apply_chosen(pixels, (name,), torch.zeros(n).long(), amounts, fill=fill, interpolation=interpolation)


def difference(a, b):
    return (a.int() - b.int()).abs().float()


def cases(table):
    return [pytest.param(name, pillow, x, id=f"{name}-{x}") for name, (pillow, xs) in table.items() for x in xs]


def test_every_operation_has_a_case():
    assert {*POINTWISE, "gaussian_blur", "hue"} == set(PIXEL_OPS)
    assert set(MAPPED) == set(AFFINE_OPS)


@pytest.mark.parametrize("name, pillow, amount", cases(POINTWISE))
def test_values_are_pillows_up_to_rounding(name, pillow, amount):
    reference = as_bytes([pillow(picture, *([] if amount is None else [amount])) for picture in PICTURES])
    found = difference(ours(name, amount), reference)
    assert found.max() <= 1
    assert found.mean() < 0.01


@pytest.mark.parametrize("name, pillow, amount", cases(MAPPED))
def test_maps_move_pixels_where_pillow_does_and_fill_the_rest(name, pillow, amount):
    def reference(resample):
        return as_bytes([pillow(picture, amount, fillcolor=FILL, resample=resample) for picture in PICTURES])

    bilinear = difference(ours(name, amount), reference(Image.Resampling.BILINEAR))
    assert bilinear.mean() < 0.1
    assert bilinear.max() <= 1
    bicubic = difference(ours(name, amount, interpolation="bicubic"), reference(Image.Resampling.BICUBIC))
    assert bicubic.mean() < 3


@pytest.mark.parametrize("shape", [(40, 96), (96, 40)])
@pytest.mark.parametrize("name", MAPPED)
def test_maps_are_in_pixels_also_where_pictures_are_not_square(name, shape):
    pictures = [picture.crop((0, 0, shape[1], shape[0])) for picture in PICTURES]
    pillow, (amount, *_) = MAPPED[name]
    reference = as_bytes([pillow(p, amount, fillcolor=FILL, resample=Image.Resampling.BILINEAR) for p in pictures])
    assert difference(ours(name, amount, as_bytes(pictures)), reference).mean() < 0.1


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0])
def test_blur_is_about_pillows(sigma):
    reference = as_bytes([timm_ops.gaussian_blur(picture, sigma) for picture in PICTURES])
    assert difference(ours("gaussian_blur", sigma), reference).mean() < 0.6


@pytest.mark.parametrize("turn", [-0.4, 0.1, 0.5])
def test_hue_is_about_pillows_and_exactly_the_formulas(turn):
    reference = as_bytes([TF.adjust_hue(picture, turn) for picture in PICTURES])
    assert difference(ours("hue", turn), reference).mean() < 1
    assert difference(ours("hue", turn), (TF.adjust_hue(PIXELS.float() / 255, turn) * 255).byte()).max() <= 1


def test_no_bit_kept_is_black():
    assert ours("posterize", 0).max() == 0
    assert ours("posterize", -1).max() == 0


@pytest.mark.parametrize("name", ["autocontrast", "equalize"])
def test_one_value_stays(name):
    flat = torch.full((2, 3, 8, 8), 77, dtype=torch.uint8)
    assert torch.equal(ours(name, None, flat), flat)


def test_every_image_gets_its_own_operation_and_amount():
    names = ("invert", "brightness", "rotate")
    chosen = torch.tensor([1, -1, 0, 1, 2, -1])
    amount = torch.tensor([0.5, 0, 0, 1.5, 10, 0])
    out = apply_chosen(PIXELS, names, chosen, amount, fill=torch.tensor(FILL), interpolation="bilinear")
    alone = [
        ours(names[k], x, pixels[None])[0] if k >= 0 else pixels
        for pixels, k, x in zip(PIXELS, chosen.tolist(), amount.tolist(), strict=True)
    ]
    assert torch.equal(out, torch.stack(alone))


def test_random_interpolation_takes_both_kernels():
    pixels = PIXELS[:1].float().expand(16, -1, -1, -1)
    maps = AFFINE_OPS["rotate"](torch.full((16,), 10.0), 1.0)
    both = {mode: warp(pixels[:1], maps[:1], mode) for mode in ("bilinear", "bicubic")}
    torch.manual_seed(0)
    found = [
        [mode for mode, one in both.items() if torch.allclose(image, one[0])] for image in warp(pixels, maps, "random")
    ]
    assert all(len(modes) == 1 for modes in found)
    assert {modes[0] for modes in found} == set(both)
