"""Of any family of vision transformers, what is captured is what its layers multiply V with."""

from functools import partial

import pytest
import timm
import torch
import torchvision
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg

from attnprobe.capturing import certify, record
from tests.capturing.oracle import factors_of, missing, no_trace


def of_timm(name, **options):
    return partial(timm.create_model, name, num_classes=3, **options)


SWIN = {"img_size": 64, "window_size": 4, "depths": (2, 1), "embed_dim": 24, "num_heads": (2, 3)}

FAMILIES = {
    "vit": (of_timm("vit_tiny_patch16_224", img_size=32, depth=2), 32, "trunk self 2x3"),
    "vit registers": (of_timm("vit_tiny_patch16_224", img_size=32, depth=2, reg_tokens=2), 32, "trunk self 2x3"),
    "siglip": (
        of_timm("vit_base_patch16_siglip_224", img_size=32, depth=2, embed_dim=48, num_heads=3),
        32,
        "trunk self 2x3, pool pool 1x3",
    ),
    "deit": (of_timm("deit_tiny_distilled_patch16_224", img_size=32, depth=2), 32, "trunk self 2x3"),
    "cait": (of_timm("cait_xxs24_224", img_size=32, depth=2), 32, "trunk self 2x4, class class 2x4"),
    "beit": (
        of_timm("beit_base_patch16_224", img_size=32, depth=2, embed_dim=48, num_heads=3),
        32,
        "trunk self 2x3",
    ),
    "eva": (of_timm("eva02_tiny_patch14_224", img_size=28, depth=2), 28, "trunk self 2x3"),
    "relpos": (of_timm("vit_relpos_small_patch16_224", img_size=32, depth=2), 32, "trunk self 2x6"),
    "xcit": (of_timm("xcit_nano_12_p16_224", img_size=32, depth=2), 32, "trunk channel 2x4, class class 2x4"),
    "pvt_v2": (
        of_timm("pvt_v2_b0", depths=(1, 1, 1, 1)),
        64,
        "stage1 pyramid 1x1, stage2 pyramid 1x2, stage3 pyramid 1x5, stage4 self 1x8",
    ),
    "twins": (
        of_timm("twins_svt_small", depths=(2, 2, 1, 1)),
        224,
        "stage1_window window 1x2, stage1_pyramid pyramid 1x2, stage2_window window 1x4, stage2_pyramid pyramid 1x4, "
        "stage3 window 1x8, stage4 self 1x16",
    ),
    "mvitv2": (
        partial(MultiScaleVit, MultiScaleVitCfg(depths=(1, 2)), img_size=64, num_classes=3),
        64,
        "stage1 pyramid 1x1, stage2_self self 1x2, stage2_pyramid pyramid 1x2",
    ),
    "hiera": (
        of_timm("hiera_tiny_224", img_size=(64, 64), stages=(1, 1, 2), q_pool=2),
        64,
        "stage1 window 1x1, stage2 window 1x2, stage3_window window 1x4, stage3_self self 1x4",
    ),
    "maxvit": (
        of_timm("maxvit_pico_rw_256", img_size=64, depths=(1, 1), embed_dim=(32, 64)),
        64,
        "stage1_window window 1x1, stage1_grid grid 1x1, stage2_window window 1x2, stage2_grid grid 1x2",
    ),
    "swin": (of_timm("swin_tiny_patch4_window7_224", **SWIN), 64, "stage1 window 2x2, stage2 window 1x3"),
    "swin v2": (of_timm("swinv2_tiny_window8_256", **SWIN), 64, "stage1 window 2x2, stage2 window 1x3"),
    "swin v2 cr": (of_timm("swinv2_cr_tiny_224", **SWIN), 64, "stage1 window 2x2, stage2 window 1x3"),
    "convit": (
        of_timm("convit_tiny", img_size=32, depth=3, local_up_to_layer=2),
        32,
        "stage1 self 2x4, stage2 self 1x4",
    ),
    "tnt": (of_timm("tnt_s_legacy_patch16_224", img_size=32, depth=2), 32, "stage1 window 2x4, stage2 self 2x6"),
    "davit": (
        of_timm("davit_tiny", depths=(1, 1), embed_dims=(32, 64), num_heads=(2, 4)),
        112,
        "stage1_window window 1x2, stage1_channel channel 1x2, stage2_window window 1x4, stage2_channel channel 1x4",
    ),
    "cascaded heads": (
        of_timm("efficientvit_m0", depth=(1, 1), embed_dim=(64, 128), key_dim=(16, 16), num_heads=(4, 4)),
        224,
        "stage1 window 4x1, stage2 self 4x1",
    ),
    "torchvision vit": (
        partial(torchvision.models.VisionTransformer, 32, 16, 2, 4, 48, 96, num_classes=3),
        32,
        "trunk self 2x4",
    ),
    "torchvision swin": (
        partial(torchvision.models.SwinTransformer, [4, 4], 24, [2, 1], [2, 3], [4, 4], num_classes=3),
        64,
        "stage1 window 2x2, stage2 window 1x3",
    ),
    "torchvision swin v2": (
        partial(
            torchvision.models.SwinTransformer,
            [4, 4],
            24,
            [2, 1],
            [2, 3],
            [4, 4],
            num_classes=3,
            block=torchvision.models.swin_transformer.SwinTransformerBlockV2,
        ),
        64,
        "stage1 window 2x2, stage2 window 1x3",
    ),
    "torchvision maxvit": (
        partial(torchvision.models.MaxVit, (64, 64), 16, 4, [16, 32], [1, 1], 8, 0.0, num_classes=3),
        64,
        "stage1_window window 1x2, stage1_grid grid 1x2, stage2_window window 1x4, stage2_grid grid 1x4",
    ),
}

LARGE = {
    name: (of_timm(name), size)
    for name, size in {
        "coat_tiny": 224,
        "coatnet_nano_rw_224": 224,
        "cpubone_b0_bfrobust": 256,
        "crossvit_tiny_240": 240,
        "csatv2": 512,
        "edgenext_xx_small": 256,
        "efficientformer_l1": 224,
        "efficientformerv2_s0": 224,
        "efficientvim_m1": 224,
        "gcvit_xxtiny": 224,
        "iformer_t": 224,
        "levit_128s": 224,
        "lowformer_b0": 224,
        "mobilevit_xxs": 256,
        "nest_tiny": 224,
        "nextvit_small": 224,
        "pit_ti_224": 224,
        "resnet50_clip": 224,
        "shvit_s1": 224,
        "tiny_vit_5m_224": 224,
        "visformer_tiny": 224,
        "volo_d1_224": 224,
    }.items()
}


def seen_through(model, pixels, **options):
    with torch.inference_mode(), record(model, ("weights", "effective"), **options) as recorder:
        model(pixels)
        return recorder.take()


def layer_by_layer(taken):
    """(layer name, effective map [image, head, row, key]) of every layer."""
    for maps in taken:
        if maps.is_effective:
            for i, name in enumerate(maps.layers):
                yield name, maps.values[:, i]


def check_against_every_factor(model, pixels):
    """The certificate holds, and every captured map was a factor of a product of matrices."""
    with torch.inference_mode():
        before = model(pixels)
    with no_trace(model):
        proof = certify(model, pixels)
        taken = seen_through(model, pixels)
    assert proof.output_equal and proof.n_images == len(pixels)
    assert all(layer.value_error is not None and layer.value_error < 1e-5 for layer in proof.layers)
    with torch.inference_mode():
        assert torch.equal(model(pixels), before)
    names = [name for name, _ in layer_by_layer(taken)]
    assert sorted(names) == sorted(layer.layer for layer in proof.layers)
    factors = factors_of(model, pixels)
    for maps in taken:
        if maps.stochastic:
            torch.testing.assert_close(maps.values.sum(-1), torch.ones(maps.values.shape[:-1]), rtol=0, atol=1e-4)
    for name, values in layer_by_layer(taken):
        rows = values.shape[2]
        sizes = [n for n in range(1, rows + 1) if rows % n == 0]  # of one window, if there are several
        found = min(missing(values.unflatten(2, (-1, n)).flatten(0, 2), factors) for n in sizes)
        assert found < 1e-5, f"{name}: no product had this map as a factor, the nearest is off by {found}"
    return taken


@pytest.mark.parametrize("family", FAMILIES)
def test_maps_are_what_multiplies_v_and_the_output_stays_the_same(family):
    build, size, expected = FAMILIES[family]
    torch.manual_seed(0)
    model, pixels = build().eval(), torch.randn(2, 3, size, size)
    taken = check_against_every_factor(model, pixels)
    stages = [m for m in taken if m.is_effective]
    assert ", ".join(f"{m.stage} {m.kind} {m.values.shape[1]}x{m.values.shape[2]}" for m in stages) == expected
    swapped = [m for m in seen_through(model, pixels.flip(0)) if m.is_effective]
    for one, other in zip(stages, swapped, strict=True):
        torch.testing.assert_close(one.values.flip(0), other.values, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_larger_families(name):
    build, size = LARGE[name]
    torch.manual_seed(0)
    check_against_every_factor(build().eval(), torch.randn(2, 3, size, size))


@pytest.mark.parametrize("family", ["vit", "vit registers", "deit", "beit", "eva"])
def test_watching_sees_what_hooks_see(family):
    build, size, _ = FAMILIES[family]
    torch.manual_seed(0)
    model, pixels = build().eval(), torch.randn(2, 3, size, size)
    (hooked,), (watched,) = (
        seen_through(model, pixels, tokens=True),
        seen_through(model, pixels, tokens=True, watch=True),
    )
    torch.testing.assert_close(watched.values, hooked.values, rtol=0, atol=1e-6)
    torch.testing.assert_close(watched.tokens, hooked.tokens, rtol=1e-4, atol=1e-5)
    assert (watched.layers, watched.kind, watched.stage) == (hooked.layers, hooked.kind, hooked.stage)
    assert (watched.grid.rows, watched.grid.cols, watched.grid.patch) == (
        hooked.grid.rows,
        hooked.grid.cols,
        hooked.grid.patch,
    )
    assert set(watched.grid.prefix) == set(hooked.grid.prefix)


def test_prefix_tokens_and_grids_that_change_with_depth():
    build, size, _ = FAMILIES["cait"]
    trunk, _, klass = seen_through(build().eval(), torch.randn(1, 3, size, size))
    assert (trunk.grid.prefix, trunk.grid.rows, klass.grid.prefix) == ((), 2, ("cls",))
    build, size, _ = FAMILIES["pvt_v2"]
    stages = seen_through(build().eval(), torch.randn(1, 3, size, 96))
    assert [(m.grid.rows, m.grid.cols, m.grid.patch[0]) for m in stages] == [(2, 3, 32)] * 4
    assert [m.values.shape[-2:] for m in stages] == [(384, 6), (96, 6), (24, 6), (6, 6)]
