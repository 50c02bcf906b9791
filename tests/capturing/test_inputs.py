"""A capture takes images in any form whose meaning is plain, and says in one line what to pass instead of others."""

import collections
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
from attnprobe.core.outputs import class_logits, difference, tensors_of
from attnprobe.reports.html import proof_of

X = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([3, 2, 1, 0])


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


LABELLED = {
    "pixels and a tensor": lambda: (X, Y),
    "pixels and a list": lambda: (X, Y.tolist()),
    "a list of images and a tensor": lambda: (list(X), Y),
    "a list of pairs": lambda: [(x, int(y)) for x, y in zip(X, Y, strict=True)],
    "a data set": lambda: TensorDataset(X, Y),
    "a loader": lambda: DataLoader(TensorDataset(X, Y), 3),
    "a loader that does not stack": lambda: DataLoader(TensorDataset(X, Y), 3, collate_fn=list),
    "a dictionary": lambda: {"pixel_values": X, "labels": Y},
    "a generator of pairs": lambda: zip(X.split(3), Y.split(3), strict=True),
}


@pytest.mark.parametrize("name", LABELLED)
def test_labels_that_come_with_images_stay_with_them(vit, wanted, name):
    taken = list(ap.capture(vit, LABELLED[name](), batch_size=3))
    torch.testing.assert_close(torch.cat([m.values for m in taken]), wanted, rtol=0, atol=1e-6)
    assert torch.cat([m.outcome.labels for m in taken]).tolist() == Y.tolist()


def test_one_item_of_a_data_set_is_one_image(vit, wanted):
    (maps,) = ap.capture(vit, TensorDataset(X, Y)[2])
    torch.testing.assert_close(maps.values, wanted[2:3], rtol=0, atol=1e-6)
    assert maps.outcome.labels.tolist() == [1]


def test_an_image_of_a_shuffled_loader_keeps_its_position_in_the_data_set_as_id(vit, wanted):
    loader = DataLoader(TensorDataset(X, Y), 3, shuffle=True, generator=torch.Generator().manual_seed(1))
    capturing = ap.capture(vit, loader, batch_size=3)
    for _ in range(2):  # the order is drawn once
        taken = list(capturing)
        ids = [int(i) for m in taken for i in m.image_ids]
        assert sorted(ids) == [0, 1, 2, 3] and ids != [0, 1, 2, 3]
        torch.testing.assert_close(torch.cat([m.values for m in taken]), wanted[ids], rtol=0, atol=1e-6)
        assert torch.cat([m.outcome.labels for m in taken]).tolist() == Y[ids].tolist()


@pytest.mark.parametrize(
    "make", [lambda: DataLoader(list(X), 2, collate_fn=list), lambda: (list(pair) for pair in X.split(2))]
)
def test_no_image_of_a_list_in_a_batch_is_dropped(vit, wanted, make):
    found = torch.cat([m.values for m in ap.capture(vit, make())])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_images_of_a_data_set_are_read_when_they_are_needed(vit):
    class Counting(torch.utils.data.Dataset):
        most = 0

        def __len__(self):
            return 1_000_000

        def __getitem__(self, i):
            self.most = max(self.most, i)
            return X[i % 4]

    images = Counting()
    next(iter(ap.capture(vit, images, batch_size=4)))
    assert images.most == 3


def test_a_generator_is_read_once_and_says_so(vit):
    capturing = ap.capture(vit, iter(X.split(3)))
    assert sum(m.n_images for m in capturing) == 4
    with pytest.raises(InputError, match="read already"):
        list(capturing)


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


class Holder:
    """An output of a class of one's own."""

    def __init__(self, logits):
        self.logits, self.itself = logits, self


@pytest.mark.parametrize("form", [lambda y: None, lambda y: {}, lambda y: "cat"])
def test_an_output_without_numbers_is_called_not_compared(vit, form):
    proof = ap.capture(Returning(vit, form), X).certificate
    assert proof.output_equal is None and len(proof.layers) == 2
    assert "not compared" in str(proof) and "not compared" in proof_of(proof.to_dict())


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_of_numbers_is_compared(vit, name):
    proof = ap.capture(Returning(vit, OUTPUTS[name]), X).certificate
    assert (proof.output_equal is None) == (name == "nothing")


@pytest.mark.parametrize(
    ("form", "n_tensors"),
    [
        (Holder, 1),
        (lambda y: y.to_sparse(), 1),
        (lambda y: {"seconds": 0.3, "out": {"a": [y, (y,)]}}, 2),
        (lambda y: (3, "vit"), 1),
    ],
)
def test_all_tensors_of_an_output_are_compared_wherever_they_are(form, n_tensors):
    one, other = torch.randn(4, 5), torch.randn(4, 5)
    assert len(tensors_of(form(one))) == n_tensors
    moved = difference(tensors_of(form(one)), tensors_of(form(other)))
    expected = 0 if form(one) == (3, "vit") else ((one - other).abs().max() / other.abs().max()).item()
    assert moved == pytest.approx(expected)


def test_a_generator_is_refused_since_nobody_can_compare_it(vit):
    with pytest.raises(CaptureError, match="returns a generator"):
        next(iter(ap.capture(Returning(vit, lambda y: (t for t in (y,))), X)))


Pooled = collections.namedtuple("Pooled", "features cls_logits")


def test_features_by_name_are_no_class_logits():
    features, logits = torch.randn(4, 7), torch.randn(4, 3)
    assert class_logits({"last": torch.randn(4, 2, 7), "pooler_output": features}, 4) is None
    assert torch.equal(class_logits(Pooled(features, logits), 4), logits)
    assert torch.equal(class_logits((None, logits), 4), logits) and class_logits(logits, 3) is None


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


def test_bytes_as_floats_are_named_and_normalised_pixels_are_not(vit):
    with pytest.warns(UserWarning, match="whole numbers up to 255, as if they were not normalised"):
        list(ap.capture(vit, (X.clamp(-2, 2) + 2).mul(63.75).round()))
    with pytest.warns(UserWarning, match="numbers up to 255, as if they were not normalised"):
        list(ap.capture(vit, (X.clamp(-2, 2) + 2).mul(63.75)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for pixels in (X, X.clamp(0, 1) - 0.1, X.round(), torch.zeros_like(X)):
            list(ap.capture(vit, pixels))


def test_pixels_from_0_to_1_are_doubted_only_where_the_model_states_another_normalisation():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, num_classes=0).eval()
    with pytest.warns(UserWarning, match="pixels are from 0 to 1, .* states mean 0.5, 0.5, 0.5 and std 0.5, 0.5, 0.5"):
        list(ap.capture(model, X.clamp(0, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for stated in ({}, {"mean": (0, 0, 0), "std": (1, 1, 1)}):
            model.pretrained_cfg = stated
            list(ap.capture(model, X.clamp(0, 1)))


def test_a_model_of_one_channel_is_told_how_to_get_grey_images():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, in_chans=1, num_classes=0).eval()
    with pytest.raises(InputError, match=r"takes grey images: .*spec=ap\.input_spec\(model\)\.grey\(\)"):
        list(ap.capture(model, X))


def test_files_of_three_channels_are_no_advice_for_a_model_of_twelve():
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, depth=1, in_chans=12, num_classes=0).eval()
    with pytest.raises(InputError, match=r"Files are read as 3 channels: pass pixels \[image, 12, row, col\]"):
        list(ap.capture(model, X))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (lambda vit: ap.capture(vit, X, selection="1,2"), "a selection is .*Selection.*got '1,2'"),
        (lambda vit: ap.capture(vit, X, layers=[1]), "capture has no option 'layers'.*Known: .*selection"),
        (lambda vit: ap.capture(vit, X, site="softmax"), "sites must be some of weights, effective.*got .'softmax'"),
        (lambda vit: ap.load_images("digits"), "load_images needs spec=ap.input_spec.model.,.*got None"),
        (lambda vit: ap.write_report(ap.measure(ap.capture(vit, X)), "out"), "a report is of examined models"),
    ],
)  # fmt: skip
def test_what_a_newcomer_passes_instead_is_named_in_a_line(vit, asked, said):
    with pytest.raises(InputError, match=said):
        asked(vit)
