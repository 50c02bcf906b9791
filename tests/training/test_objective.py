"""The loss against loops written from its definition."""

import pytest
import torch
import torch.nn.functional as F

from attnprobe.core.errors import InputError
from attnprobe.models import VARIANTS, build_model
from attnprobe.training.config import TrainConfig
from attnprobe.training.mix import soft_targets
from attnprobe.training.objective import classification_loss

CONFIG = TrainConfig(model="refiner_16_digits", dataset="digits", smoothing=0.1, cls_weight=0.7, dense_weight=0.4)


def test_plain_logits_have_smoothed_cross_entropy():
    logits, labels = torch.randn(4, 5), torch.tensor([0, 4, 2, 2])
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(classification_loss(logits, labels, CONFIG), expected)
    torch.testing.assert_close(classification_loss(logits, soft_targets(labels, 5, 0.1), CONFIG), expected)


def test_dense_loss_equals_a_loop_over_patches():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, generator=generator)
    patches = torch.randn(4, 6, 5, generator=generator)
    labels, box = torch.tensor([1, 3, 0, 2]), (0, 1, 2, 3)  # 4 of the 2 x 3 patches
    targets = soft_targets(labels, 5, 0.1)
    total = 0.0
    for i in range(4):
        mixed = (1 - 4 / 6) * targets[i] + 4 / 6 * targets[3 - i]
        total += 0.7 * float(-(mixed * logits[i].log_softmax(-1)).sum()) / 4
        for patch in range(6):
            total += 0.4 * float(-(targets[i] * patches[i, patch].log_softmax(-1)).sum()) / 24
    assert classification_loss((logits, patches, box), labels, CONFIG).item() == pytest.approx(total, rel=1e-5)


def test_without_a_swapped_box_the_class_target_is_the_images_own():
    logits, patches, labels = torch.randn(2, 3), torch.zeros(2, 4, 3), torch.tensor([0, 2])
    options = TrainConfig(model="refiner_16_digits", dataset="digits", dense_weight=0.0)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    torch.testing.assert_close(classification_loss((logits, patches, (0, 0, 0, 0)), labels, options), expected)


def test_refiner_with_dense_head_and_mix_token_learns_from_it():
    model = build_model("refiner_16_digits", num_classes=3, depth=2, dense=True, mix_token=True, seed=0)
    torch.manual_seed(0)
    loss = classification_loss(model(torch.randn(4, 3, 32, 32)), torch.tensor([0, 1, 2, 0]), CONFIG)
    loss.backward()
    assert model.aux_head.weight.grad.abs().sum() > 0 and model.head.weight.grad.abs().sum() > 0


def test_other_outputs_are_refused():
    with pytest.raises(InputError, match="returns 2 outputs"):
        classification_loss((torch.zeros(1, 2), torch.zeros(1, 2)), torch.zeros(1, dtype=torch.long), CONFIG)


@pytest.mark.parametrize("name", [f"{variant}_16_digits" for variant in VARIANTS] + ["refiner_s"])
def test_a_batch_of_no_image_has_loss_0_and_gradients_of_0(name):
    size = {"img_size": 32} if name == "refiner_s" else {}
    model = build_model(name, num_classes=5, depth=2, seed=0, **size).train()
    before = {key: tensor.clone() for key, tensor in model.named_buffers() if "running" in key}
    loss = classification_loss(model(torch.zeros(0, 3, 32, 32)), torch.zeros(0, dtype=torch.long), CONFIG)
    loss.backward()
    assert loss.item() == 0 and all(p.grad is not None and not p.grad.any() for p in model.parameters())
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.named_buffers() if key in before)
