"""A capture takes images in any form whose meaning is plain, and says in one line what to pass instead of others."""

import dataclasses
import types
import warnings

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import attnprobe as ap
from attnprobe.core.errors import CaptureError, InputError

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def vit():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10).eval()


@pytest.fixture(scope="module")
def wanted(vit):
    return torch.cat([m.values for m in ap.capture(vit, X)])


FORMS = {
    "a data loader": lambda: DataLoader(TensorDataset(X, torch.zeros(4)), 2),
    "a data set": lambda: TensorDataset(X, torch.zeros(4)),
    "a list of images": lambda: list(X),
    "a list of batches": lambda: [X[:1], X[1:]],
    "a generator": lambda: (batch for batch in X.split(3)),
    "pixels and labels": lambda: (X, torch.zeros(4)),
    "a NumPy array": lambda: X.numpy(),
    "a processor's dictionary": lambda: {"pixel_values": X},
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_gives_the_same_maps(vit, wanted, name):
    found = torch.cat([m.values for m in ap.capture(vit, FORMS[name]())])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_one_image_needs_no_axis_of_images(vit, wanted):
    (maps,) = ap.capture(vit, X[2])
    torch.testing.assert_close(maps.values, wanted[2:3], rtol=0, atol=1e-6)


REFUSED = {
    "bytes": (lambda: (50 * X).clamp(0, 255).byte(), "not normalised"),
    "channels last": (lambda: X.permute(0, 2, 3, 1), r"permute\(0, 3, 1, 2\)"),
    "a path": (lambda: "photos/", "is a path"),
    "a picture": (lambda: [Image.new("RGB", (32, 32))], "save them in a folder"),
    "other pixels": (lambda: torch.randn(2, 3, 64, 64), "built for 32 x 32 pixels"),
    "several sizes": (lambda: [X[:1], X[:1, :, :16]], "several shapes"),
    "another dictionary": (lambda: {"text": X}, "needs 'pixel_values'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_things_are_refused_in_one_line(vit, name):
    make, reason = REFUSED[name]
    with pytest.raises(InputError, match=reason) as error:
        next(iter(ap.capture(vit, make())))
    assert "\n" not in str(error.value)


def test_weights_that_are_not_there_are_named():
    with torch.device("meta"):
        model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1)
    with pytest.raises(CaptureError, match="device meta"):
        ap.capture(model, X)


def test_offloaded_weights_are_brought_by_their_hooks():
    class Offloaded(nn.Module):
        """As accelerate leaves a model: meta weights, and a hook that holds the real ones and knows the device."""

        def __init__(self, vit):
            super().__init__()
            self.weight = nn.Parameter(torch.empty(1, device="meta"))
            self.vit, self._hf_hook = vit, types.SimpleNamespace(execution_device=torch.device("cpu"))

        def forward(self, x):
            return self.vit(x)

    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10).eval()
    found, wanted = (torch.cat([m.values for m in ap.capture(model, X)]) for model in (Offloaded(vit), vit))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_a_scripted_model_is_refused(vit):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, that tracing is old
        traced = torch.jit.trace(vit, X)
    with pytest.raises(CaptureError, match="TorchScript"):
        ap.capture(traced, X)


@dataclasses.dataclass
class Result:
    text: str
    logits: torch.Tensor


OUTPUTS = {
    "a dataclass": lambda y: Result("vit", y),
    "nothing first": lambda y: (None, y),
    "text first": lambda y: {"name": "vit", "logits": y},
    "a number first": lambda y: {"epoch": 3, "logits": y},
    "classes": lambda y: y.argmax(-1),
    "a mask": lambda y: y > 0,
    "complex numbers": lambda y: torch.complex(y, y),
    "an array": lambda y: y.numpy(),
    "nothing": lambda y: None,
    "a number": lambda y: y.mean().item(),
}


class Returning(nn.Module):
    def __init__(self, vit, form):
        super().__init__()
        self.vit, self.form = vit, form

    def forward(self, x):
        return self.form(self.vit(x))


@pytest.mark.parametrize("name", OUTPUTS)
def test_whatever_a_model_returns_its_maps_are_the_same(vit, wanted, name):
    found = torch.cat([m.values for m in ap.capture(Returning(vit, OUTPUTS[name]), X)])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_class_logits_are_found_in_any_output(vit):
    (maps,) = ap.capture(Returning(vit, OUTPUTS["text first"]), X)
    with torch.no_grad():
        assert maps.outcome.prediction.tolist() == vit(X).argmax(-1).tolist()


class Tower(nn.Module):
    """A backbone in another precision than the head."""

    def __init__(self, vit, dtype, autocast):
        super().__init__()
        self.vit, self.dtype, self.autocast = vit, dtype, autocast
        self.head = nn.Linear(10, 5)

    def forward(self, x):
        if self.autocast:
            with torch.autocast("cpu", dtype=self.dtype):
                return self.head(self.vit(x)).float()
        return self.head(self.vit(x.to(self.dtype)).float())


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_tower_of_lower_precision_is_captured_in_that_precision(wanted, dtype, autocast):
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=10).eval()
    model = Tower(vit if autocast else vit.to(dtype), dtype, autocast).eval()
    found = torch.cat([m.values for m in ap.capture(model, X)])
    torch.testing.assert_close(found.float(), wanted, rtol=0, atol=2e-2)
