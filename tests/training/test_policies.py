"""Policies: timm's tables, levels and frequencies."""

import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm_ops

from attnprobe.core.errors import InputError
from attnprobe.training import policies
from attnprobe.training.autoaugment import AUTOAUGMENT
from attnprobe.training.policies import CHOICES, OPERATIONS, WEIGHTED, ColorJitter, Policy, parse_policy
from tests.training.photos import as_bytes, photographs

PIXELS = as_bytes(photographs(32))
SURROUNDINGS = {"fill": torch.tensor([10.0, 128, 200]), "interpolation": "bilinear"}


@pytest.mark.parametrize("name", AUTOAUGMENT)
def test_autoaugment_tables_are_timms(name):
    theirs = timm_ops.auto_augment_policy(name, {"img_mean": (0, 0, 0)})
    assert AUTOAUGMENT[name] == tuple(tuple((op.name, op.prob, op.magnitude) for op in steps) for steps in theirs)


@pytest.mark.parametrize(
    "text", ["rand", "rand-inc1", "rand-inc0", "rand-tweights", "rand-t3a", "rand-t3aw-inc1", "rand-m3-n4-p0.7"]
)
def test_randaugment_chooses_from_timms_operations_with_timms_weights(text):
    theirs = timm_ops.rand_augment_transform(text, {"img_mean": (0, 0, 0)})
    ours = parse_policy(text)
    weights = ours.weights or (1.0,) * len(ours.alternatives)
    chances = {steps[0]: weight / sum(weights) for steps, weight in zip(ours.alternatives, weights, strict=True)}
    given = theirs.choice_weights if theirs.choice_weights is not None else [1 / len(theirs.ops)] * len(theirs.ops)
    expected = {(op.name, op.prob, op.magnitude): chance for op, chance in zip(theirs.ops, given, strict=True)}
    assert chances == pytest.approx(expected)
    assert ours.layers == theirs.num_layers
    assert (ours.weights is None) == (theirs.choice_weights is None)


def test_the_papers_string_is_read():
    policy = parse_policy("rand-m9-mstd0.5-inc1")
    assert policy.alternatives[0] == (("AutoContrast", 0.5, 9.0),)
    assert len(policy.alternatives) == 15
    assert (policy.layers, policy.std, policy.top) == (2, 0.5, 10)
    assert parse_policy("rand-m12-mmax20-mstd101").std == float("inf")
    assert parse_policy("rand-m12-mmax20").top == 20
    assert parse_policy("original-mstd0.5").std == 0.5


@pytest.mark.parametrize("name", [name for name, operation in OPERATIONS.items() if name != "GaussianBlurRand"])
def test_levels_become_timms_amounts(name, monkeypatch):
    operation = OPERATIONS[name]
    for level in (0, 0.3, 1, 2.4, 2.5, 5, 7.5, 9, 10, 14):
        level_fn = timm_ops.LEVEL_TO_ARG[name]
        if level_fn is None:
            continue
        theirs = []
        for number in (0.1, 0.9):  # either side of timm's coin
            monkeypatch.setattr(random, "random", lambda number=number: number)
            theirs.append(level_fn(level, {})[0])
        if name == "Desaturate":  # timm subtracts inside the operation
            theirs = [1 - amount for amount in theirs]
        signs = (1, -1) if operation.signed else (1, 1)
        ours = [operation.amount(torch.tensor([float(sign * level)]).double()).item() for sign in signs]
        assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("name", sorted({name for choices in CHOICES.values() for name in choices}))
def test_an_operation_by_name_does_what_timms_does(name):
    """12 pictures each, as signs are drawn: every one of ours is one of theirs, and as many differ."""
    pictures = photographs(48)
    for level in (3, 9 if name == "PosterizeIncreasing" else 10):  # at 10 it keeps no bit, which Pillow 13 refuses
        operation = timm_ops.AugmentOp(
            name, 1.0, level, {"img_mean": (10, 128, 200), "interpolation": Image.Resampling.BILINEAR}
        )
        policy = Policy((((name, 1.0, level),),))
        for picture in pictures[::3]:
            theirs = {as_bytes([operation(picture)]).numpy().tobytes() for _ in range(12)}
            ours = policy(as_bytes([picture]).expand(12, -1, -1, -1), **SURROUNDINGS)
            nearest = [min(np.abs(image - np.frombuffer(t, np.uint8)).mean() for t in theirs) for image in flat(ours)]
            assert max(nearest) < 1
            assert len({image.tobytes() for image in flat(ours)}) == len(theirs)


def flat(pixels):
    return pixels.flatten(1).numpy().astype(np.int64)


def applied(monkeypatch, policy, n=4000):
    """What a policy does to `n` images: the names and amounts of each layer, without doing it."""
    seen = []

    def note(pixels, names, chosen, level, **_):
        seen.append(([names[k] if k >= 0 else None for k in chosen.tolist()], level))
        return pixels

    monkeypatch.setattr(policies, "_apply", note)
    torch.manual_seed(0)
    policy(PIXELS[:1].expand(n, -1, -1, -1), **SURROUNDINGS)
    return seen


def test_randaugment_takes_each_operation_equally_often_half_of_the_time(monkeypatch):
    for names, level in applied(monkeypatch, parse_policy("rand-m9-mstd0.5-inc1")):
        share = {name: names.count(name) / 4000 for name in set(names)}
        assert share.pop(None) == pytest.approx(0.5, abs=0.04)
        assert len(share) == 15
        assert all(one == pytest.approx(1 / 30, abs=0.012) for one in share.values())
        assert level.max() <= 10 and level.mean() == pytest.approx(8.98, abs=0.05)
        assert level.std() == pytest.approx(0.48, abs=0.05)


def test_weighted_choice_repeats_nothing_and_follows_timms_frequencies(monkeypatch):
    policy = parse_policy("rand-n3-p1-tweights")
    layers = [names for names, _ in applied(monkeypatch, policy)]
    assert all(len(set(three)) == 3 for three in zip(*layers, strict=True))
    np.random.seed(0)
    theirs = timm_ops.rand_augment_transform("rand-n3-p1-tweights", {"img_mean": (0, 0, 0)})
    drawn = [
        {op.name for op in np.random.choice(theirs.ops, 3, replace=False, p=theirs.choice_weights)} for _ in range(4000)
    ]
    for name in CHOICES["weights"]:
        expected = sum(name in names for names in drawn) / 4000
        assert sum(names.count(name) for names in layers) / 4000 == pytest.approx(expected, abs=0.045)


def test_both_steps_of_an_alternative_go_together(monkeypatch):
    (first, _), (second, _) = applied(monkeypatch, parse_policy("v0"))
    pairs = {(a, b) for a, b in zip(first, second, strict=True) if a and b}
    table = {(a[0], b[0]) for a, b in AUTOAUGMENT["v0"] if a[1] and b[1]}
    assert pairs == table


@pytest.mark.parametrize(("text", "low", "high"), [("rand-m8-mstd101", 0, 8), ("rand-m8-mstd5", 0, 10)])
def test_levels_spread_as_asked_and_stay_in_range(monkeypatch, text, low, high):
    _, level = applied(monkeypatch, parse_policy(text))[0]
    assert level.min() >= low and level.max() <= high
    assert level.mean() == pytest.approx(4 if text.endswith("101") else 6.9, abs=0.3)


def test_a_policy_leaves_about_as_many_pictures_unchanged_as_timms():
    n = 600
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    picture = photographs(32)[0]
    theirs = timm_ops.rand_augment_transform("rand-m9-mstd0.5", {"img_mean": (10, 128, 200)})
    expected = as_bytes([theirs(picture) for _ in range(n)])
    ours = parse_policy("rand-m9-mstd0.5")(as_bytes([picture]).expand(n, -1, -1, -1), **SURROUNDINGS)
    original = as_bytes([picture]).float()

    changed = [(pixels.float() - original).abs().mean((1, 2, 3)).numpy() for pixels in (ours, expected)]
    assert (changed[0] == 0).mean() == pytest.approx((changed[1] == 0).mean(), abs=0.08)
    assert changed[0].mean() == pytest.approx(changed[1].mean(), rel=0.15)


REFUSED = "augmix rnd-m9 v1 v0-m9 rand- rand-m rand-x3 rand-m9.5 rand-w0 rand-tfoo rand-n0 rand-p2 rand-n16-tweights"


@pytest.mark.parametrize("text", [*REFUSED.split(), "rand-m9-mstd0.5-inc1-"])
def test_what_cannot_be_read_is_refused_in_words(text):
    with pytest.raises(InputError, match=text.split("-")[0]):
        parse_policy(text)


def test_weighted_sets_are_known():
    assert set(WEIGHTED) < set(CHOICES)


def test_jitter_is_torchvisions_in_distribution():
    from torchvision.transforms import ColorJitter as Theirs

    picture, n = photographs(32)[4], 400
    torch.manual_seed(0)
    theirs = as_bytes([Theirs(0.4, 0.4, 0.4, 0.1)(picture) for _ in range(n)]).float()
    ours = ColorJitter((0.4, 0.4, 0.4, 0.1))(as_bytes([picture]).expand(n, -1, -1, -1), **SURROUNDINGS).float()
    for statistic in (lambda x: x.mean((2, 3)), lambda x: x.std((2, 3))):
        assert (statistic(ours).mean(0) - statistic(theirs).mean(0)).abs().max() < 5
        assert (statistic(ours).std(0) - statistic(theirs).std(0)).abs().max() < 5


def test_jitter_without_strength_or_luck_changes_nothing():
    assert torch.equal(ColorJitter((0, 0, 0, 0))(PIXELS, **SURROUNDINGS), PIXELS)
    assert torch.equal(ColorJitter((1, 1, 1, 0.5), 0.0)(PIXELS, **SURROUNDINGS), PIXELS)
    torch.manual_seed(0)
    half = ColorJitter((0.5, 0.5, 0.5, 0), 0.5)(PIXELS[:1].expand(400, -1, -1, -1), **SURROUNDINGS)
    assert ((half != PIXELS[:1]).any((1, 2, 3))).float().mean() == pytest.approx(0.5, abs=0.08)
