"""GPUs of processes, and exact arithmetic, on a machine that may have none."""

import pytest
import torch

import attnprobe as ap
from attnprobe.core.devices import exact_products, on_device, own_gpu
from attnprobe.core.errors import InputError
from attnprobe.core.metric import metric
from attnprobe.models import build_model


@pytest.fixture
def medium():
    """Matrix products in the least precision that PyTorch has, as a user may set it."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(before)


def in_force():
    return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32


def test_exact_products_are_exact_within_and_as_before_after_an_error(medium):
    with pytest.raises(KeyError), exact_products():
        assert in_force() == ("highest", False)
        raise KeyError
    assert in_force() == ("medium", True)


def test_a_certificate_is_made_and_a_metric_computed_with_exact_products(medium, make_maps):
    seen = []

    @metric(axes=("layer",), value_range=(0.0, 1.0))
    def precision(maps):
        seen.append(in_force())
        return maps.amax((-1, -2, -3))

    ap.measure([make_maps()], [precision], bootstrap=0)
    model = build_model("vit_16_digits", depth=1, seed=0).eval()
    model.patch_embed.register_forward_hook(lambda *_: seen.append(in_force()))
    capturing = ap.capture(model, torch.zeros(2, 3, 32, 32))
    assert capturing.certificate.layers and len(seen) > 3 and set(seen) == {("highest", False)}
    for _ in capturing:  # a model runs as its user set it
        assert in_force() == ("medium", True)
    assert seen[-1] == ("medium", True)


def test_a_process_without_a_gpu_of_its_own_is_refused_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert own_gpu(torch.device("cuda"), 1) == torch.device("cuda:1")
    assert own_gpu(torch.device("cpu"), 7) == torch.device("cpu")
    with pytest.raises(InputError, match="process 3 .*there are 2; start --nproc-per-node 2.*device='cpu'") as caught:
        own_gpu(torch.device("cuda"), 2)
    assert "\n" not in str(caught.value) and caught.value.exit_code == 2


def test_a_small_copy_to_a_gpu_is_pinned_and_asked_not_to_wait(monkeypatch):
    asked = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: asked.append("pinned") or self)
    monkeypatch.setattr(torch.Tensor, "to", lambda self, device, **how: asked.append(how) or self)
    on_device(torch.device("cuda"), torch.zeros(3))
    assert asked == ["pinned", {"non_blocking": True}]
