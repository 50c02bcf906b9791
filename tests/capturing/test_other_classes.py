"""A model that tells other classes apart than the images have, or none, predicts nothing about them."""

import pytest
import torch
from torch import nn

from attnprobe.capturing import capture
from attnprobe.core.images import ImageBatch
from attnprobe.models import build_model

TINY = {"depth": 2, "embed_dim": 16, "num_heads": 2, "img_size": 16, "patch_size": 8}


class Labelled:
    """Four images of three classes."""

    name, class_names, ids = "labelled", ("a", "b", "c"), tuple("0123")

    def __len__(self):
        return 4

    def batches(self, size, order=None, **_):
        pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
        for at in order if order is not None else range(4):
            yield ImageBatch(pixels[at : at + 1], torch.tensor([at % 3]), (str(at),))


def outcome(num_classes, images=None) -> object:
    model: nn.Module = build_model("vit_16_digits", seed=0, num_classes=num_classes, **TINY).eval()
    return next(iter(capture(model, Labelled() if images is None else images))).outcome


def test_of_its_own_classes_it_predicts_one():
    found = outcome(3)
    assert found.prediction.tolist()[0] in range(3) and 0 < found.probability[0] <= 1


@pytest.mark.parametrize("num_classes", [0, 2, 1000])
def test_of_others_or_of_none_nothing_is_predicted_and_labels_stay(num_classes):
    found = outcome(num_classes)
    assert found.prediction.tolist() == [-1] * len(found.prediction) and found.probability.isnan().all()
    assert found.labels.tolist()[0] == 0


def test_images_without_classes_are_still_seen_as_something_but_by_a_head_of_none():
    pixels = torch.randn(2, 3, 16, 16)
    assert (outcome(7, pixels).prediction >= 0).all()
    assert (outcome(0, pixels).prediction == -1).all()


class Giving(nn.Module):
    """A vision transformer whose logits go out in another form."""

    def __init__(self, form, num_classes=3, stated=None):
        super().__init__()
        self.model = build_model("vit_16_digits", seed=0, num_classes=num_classes, **TINY)
        self.form, self.num_classes = form, stated

    def forward(self, x):
        return self.form(self.model(x))


def given(*args, images=None):
    return next(iter(capture(Giving(*args).eval(), Labelled() if images is None else images))).outcome


def test_probabilities_are_stored_as_they_are():
    plain, softmax = given(lambda y: y), given(lambda y: y.softmax(-1))
    assert torch.equal(plain.prediction, softmax.prediction)
    torch.testing.assert_close(plain.probability, softmax.probability)


def test_of_one_number_per_image_no_class_follows():
    for images in (None, torch.randn(2, 3, 16, 16)):
        found = given(torch.sigmoid, 1, images=images)
        assert (found.prediction == -1).all() and found.probability.isnan().all() and found.n_classes == 0


@pytest.mark.parametrize(("stated", "images"), [(3, torch.randn(2, 3, 16, 16)), (None, None)])
def test_of_several_tensors_the_one_with_a_column_per_class_is_the_logits(stated, images):
    found = given(lambda y: (y.new_ones(len(y), 7).cumsum(1), y), 3, stated, images=images)
    assert found.n_classes == 3
    assert torch.equal(found.prediction, given(lambda y: y, 3, 3, images=images).prediction)
