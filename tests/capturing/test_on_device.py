"""Capture on a GPU: certified there, and the maps are those of the CPU."""

import copy

import pytest
import torch

from attnprobe.capturing import capture
from attnprobe.capturing.certificate import TOLERANCE
from attnprobe.models import build_model
from tests.capturing.test_any_model import FAMILIES


def of_ours(name):
    return lambda: build_model(name, seed=0, num_classes=3, depth=2), 32


KINDS = {
    **{name: FAMILIES[name][:2] for name in ("vit", "siglip", "deit", "cait", "beit", "swin", "torchvision vit")},
    **{name: of_ours(name) for name in ("deepvit_16_digits", "refiner_16_digits", "realformer_16_digits")},
}


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_maps_of_a_gpu_are_certified_and_are_those_of_the_cpu(kind, dtype, gpu):
    """The CPU computes in float32 with the same, already rounded weights and pixels."""
    make, size = KINDS[kind]
    torch.manual_seed(0)
    model = make().eval().to(dtype)
    pixels = torch.randn(3, 3, size, size).to(dtype)
    expected = list(capture(copy.deepcopy(model).float(), pixels.float(), ("weights", "effective")))
    capturing = capture(model.to(gpu), pixels.to(gpu), ("weights", "effective"), batch_size=2)
    maps = list(capturing)
    assert capturing.certificate.layers and all(m.values.device.type == gpu.type for m in maps)
    for stage, site in {(m.stage, m.site) for m in expected}:
        ours, theirs = (
            torch.cat([m.values.float().cpu() for m in stream if (m.stage, m.site) == (stage, site)])
            for stream in (maps, expected)
        )
        assert (ours - theirs).abs().max() <= TOLERANCE[dtype] * theirs.abs().max(), (stage, site)


def allocate_too_much(_module, args):
    """Ask the device for a PiB, more than any has, where a batch has more than two images."""
    if len(args[0]) > 2:
        torch.empty(1 << 50, dtype=torch.uint8, device=args[0].device)


@pytest.mark.gpu
def test_a_batch_is_halved_when_a_gpu_runs_out_of_memory(gpu):
    model = build_model("vit_16_digits", depth=2, seed=0).eval().to(gpu)
    pixels = torch.randn(8, 3, 32, 32, device=gpu)
    whole = torch.cat([maps.values for maps in capture(model, pixels, batch_size=8)])
    model.patch_embed.register_forward_pre_hook(allocate_too_much)
    capturing = capture(model, pixels, batch_size=8)
    with pytest.warns(UserWarning, match="out of memory with (8 images at once; going on with 4|4 .* 2)"):
        parts = torch.cat([maps.values for maps in capturing])
    assert capturing.batch_size == 2
    torch.testing.assert_close(parts, whole, rtol=0, atol=1e-6)
