"""Mixup and cutmix: timm's distributions, labels that say what the pixels show."""

import numpy as np
import pytest
import torch
from timm.data import Mixup
from timm.data.mixup import mixup_target

from attnprobe.core.errors import InputError
from attnprobe.training.config import AugmentConfig
from attnprobe.training.mix import Mix, soft_targets

OPTIONS = [
    {"mixup": 0.8},
    {"cutmix": 1.0},
    {"mixup": 0.8, "cutmix": 1.0},
    {"mixup": 0.2, "cutmix": 0.5, "mixup_prob": 0.7, "mixup_switch_prob": 0.3},
    {"cutmix_minmax": (0.3, 0.8)},
    {"mixup": 0.4, "cutmix_minmax": (0.2, 0.6), "mixup_prob": 0.5},
]
MODES = ["batch", "pair", "elem"]


def one_label_each(n, rows=12, cols=16):
    """Pixels that tell which image they come from: channel 0 holds its number."""
    return torch.arange(float(n)).view(-1, 1, 1, 1).expand(-1, 3, rows, cols).clone(), torch.arange(n)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("n", [1, 2, 7, 8])
def test_targets_are_the_shares_the_pixels_show(options, mode, n):
    torch.manual_seed(n)
    pixels, labels = one_label_each(n)
    for _ in range(5):
        mixed, targets = Mix(AugmentConfig(mixup_mode=mode, **options), n)(pixels, labels)
        shown = mixed[:, 0].mean((1, 2))
        torch.testing.assert_close(targets @ torch.arange(float(n)), shown, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(targets.sum(1), torch.ones(n))
        partners = torch.eye(n) + torch.eye(n).flip(0)
        assert (targets[partners == 0] == 0).all()
    assert torch.equal(pixels, one_label_each(n)[0])


@pytest.mark.parametrize("mode", MODES)
def test_what_a_mode_shares_is_shared_and_no_more(mode):
    torch.manual_seed(0)
    kept, box, share = Mix(AugmentConfig(mixup=0.8, cutmix=1.0, mixup_mode=mode), 9).draw(9, 20, 20)
    expected = {"batch": 1, "pair": 5, "elem": 9}[mode]
    assert len({(k.item(), *b.tolist(), s.item()) for k, b, s in zip(kept, box, share, strict=True)}) == expected
    if mode != "elem":
        assert torch.equal(share, share.flip(0)) and torch.equal(box, box.flip(0))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_shares_are_distributed_as_timms(options, mode):
    n, rounds = 8, 600
    torch.manual_seed(0), np.random.seed(0)
    pixels, _ = one_label_each(n)
    pixels, labels = (pixels == 0).float(), torch.arange(n)  # image 0 is white: what of it is left, and where?
    theirs = Mixup(
        options.get("mixup", 0),
        options.get("cutmix", 0),
        options.get("cutmix_minmax"),
        options.get("mixup_prob", 1),
        options.get("mixup_switch_prob", 0.5),
        mode,
        label_smoothing=0,
        num_classes=n,
    )
    ours = Mix(AugmentConfig(mixup_mode=mode, **options), n)
    found = {}
    for who, mix in (("ours", ours), ("theirs", theirs)):
        runs = [mix(pixels.clone(), labels) for _ in range(rounds)]
        found[who] = (
            torch.stack([targets[0, 0] for _, targets in runs]).double().sort().values,
            torch.stack([mixed[0, 0] for mixed, _ in runs]).mean(0),
            torch.stack([((mixed[0, 0] > 0) & (mixed[0, 0] < 1)).any() for mixed, _ in runs]).double().mean(),
        )
    (our_share, our_map, our_mixups), (their_share, their_map, their_mixups) = found["ours"], found["theirs"]
    assert (our_share - their_share).abs().mean() < 0.05  # the distance between both distributions
    assert (our_map - their_map).abs().max() < 0.12
    assert abs(our_mixups - their_mixups) < 0.09


def test_targets_are_smoothed_as_timms():
    labels = torch.tensor([0, 3, 2])
    torch.testing.assert_close(soft_targets(labels, 5, 0.1), mixup_target(labels, 5, smoothing=0.1))
    hard = torch.nn.functional.one_hot(labels, 5).float()
    torch.testing.assert_close(soft_targets(labels, 5, 0.0), hard)
    logits = torch.randn(3, 5)
    torch.testing.assert_close(
        torch.nn.functional.cross_entropy(logits, soft_targets(labels, 5, 0.1)),
        torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1),
    )


def test_smoothing_reaches_mixed_targets():
    torch.manual_seed(0)
    pixels, labels = one_label_each(4)
    _, targets = Mix(AugmentConfig(mixup=0.8, smoothing=0.2), 10)(pixels, labels)
    torch.testing.assert_close(targets[:, 4:], torch.full((4, 6), 0.02))


def test_never_is_never():
    pixels, labels = one_label_each(5)
    mixed, targets = Mix(AugmentConfig(mixup=0.8, cutmix=1.0, mixup_prob=0.0, mixup_mode="elem"), 5)(pixels, labels)
    assert torch.equal(mixed, pixels)
    assert torch.equal(targets, torch.eye(5))


def test_nothing_to_mix_is_refused():
    with pytest.raises(InputError, match="nothing to mix"):
        Mix(AugmentConfig(smoothing=0.1), 5)
