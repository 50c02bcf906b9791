"""Batch augmentation: per-image randomness, timm's boxes, inside the picture, off when off."""

import random

import numpy as np
import pytest
import torch
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import RandomResizedCropAndInterpolation

from attnprobe.core.errors import InputError
from attnprobe.core.images import InputSpec
from attnprobe.training.augment import Augmentation, erase, random_flip, random_resized_crop
from attnprobe.training.config import AugmentConfig
from attnprobe.training.transforms import colour_steps, seeded
from tests.training.photos import as_bytes, photographs

SPEC = InputSpec((48, 48), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
PICTURES = photographs(48)
PIXELS = SPEC.normalise(as_bytes(PICTURES).float() / 255)
EVERYTHING = AugmentConfig(
    scale=(0.08, 1.0),
    ratio=(3 / 4, 4 / 3),
    hflip=0.5,
    vflip=0.1,
    aa="rand-m9-mstd0.5-inc1",
    reprob=0.25,
)


def test_nothing_chosen_changes_nothing():
    assert Augmentation(AugmentConfig(), SPEC)(PIXELS) is PIXELS


@pytest.mark.parametrize("axis", [-1, -2])
def test_a_certain_flip_is_the_mirror_image(axis):
    flipped = Augmentation(AugmentConfig(hflip=float(axis == -1), vflip=float(axis == -2)), SPEC)(PIXELS)
    assert torch.equal(flipped, PIXELS.flip(axis))
    assert torch.equal(random_flip(PIXELS, 1.0, axis), PIXELS.flip(axis))


def test_crops_stay_inside_and_differ_between_images():
    ramp = torch.linspace(0, 1, 64).expand(1, 1, 64, 64).repeat(64, 3, 1, 1)
    out = random_resized_crop(ramp, (0.3, 0.6), (0.75, 1.33), "bilinear")
    assert out.min() >= 0 and out.max() <= 1
    width = out[:, 0, 8, -1] - out[:, 0, 8, 0]
    assert (width > 0.4).all() and (width < 0.95).all()
    assert len(width.unique()) > 32


@pytest.mark.parametrize(("kernel", "bound"), [("bilinear", 0.6), ("bicubic", 1.5)])
def test_a_crop_is_what_timm_cuts_from_the_same_box(kernel, bound, monkeypatch):
    """One ratio and one area leave only the place to chance: take the nearest of all of timm's places."""
    torch.manual_seed(0)
    size, side = 48, 42
    share = (side / size) ** 2
    ours = SPEC.restore(random_resized_crop(PIXELS, (share, share), (1.0, 1.0), kernel)) * 255
    crop = RandomResizedCropAndInterpolation(size, (share, share), (1.0, 1.0), kernel)
    for image, picture in zip(ours, PICTURES, strict=True):
        differences = []
        for top in range(size - side + 1):
            for left in range(size - side + 1):
                places = iter((top, left))
                monkeypatch.setattr(random, "randint", lambda a, b, places=places: next(places))
                theirs = as_bytes([crop(picture)])[0].float()
                differences.append((image - theirs)[:, 1:-1, 1:-1].abs().mean().item())
        assert min(differences) < bound
        assert sorted(differences)[1] > 2 * min(differences)


@pytest.mark.parametrize(
    "options",
    [((0.08, 1.0), (3 / 4, 4 / 3)), ((0.05, 0.1), (0.2, 5.0)), ((0.9, 1.0), (2.0, 3.0)), ((1.0, 1.0), (0.3, 0.5))],
)
def test_boxes_are_distributed_as_timms(options):
    """Coordinates as pixels: the corners of a crop tell its box, if the kernel's half pixel is taken into account."""
    n, rows, cols = 3000, 40, 60
    torch.manual_seed(0), random.seed(0)
    place = torch.stack(torch.meshgrid(torch.arange(float(rows)), torch.arange(float(cols)), indexing="ij"))
    place = torch.cat([place, torch.zeros(1, rows, cols)]).expand(n, -1, -1, -1)
    out = random_resized_crop(place, *options, "bilinear")
    middle = out[:, :2, 19:21, 29:31].mean((2, 3)) + 0.5
    height = (out[:, 0, 21, 0] - out[:, 0, 19, 0]) / 2 * rows
    width = (out[:, 1, 0, 31] - out[:, 1, 0, 29]) / 2 * cols
    ours = torch.stack([middle[:, 0] - height / 2, middle[:, 1] - width / 2, height, width], 1).numpy()
    image = torch.zeros(3, rows, cols)
    theirs = np.array([RandomResizedCropAndInterpolation.get_params(image, *options) for _ in range(n)])
    np.testing.assert_allclose(ours, ours.round(), atol=0.02)
    np.testing.assert_allclose(ours.mean(0), theirs.mean(0), atol=1)
    np.testing.assert_allclose(ours.std(0), theirs.std(0), atol=1)
    np.testing.assert_allclose(np.quantile(ours, [0.1, 0.5, 0.9], 0), np.quantile(theirs, [0.1, 0.5, 0.9], 0), atol=2.1)


def test_a_bicubic_crop_stays_within_black_and_white():
    edges = SPEC.normalise((torch.arange(48) // 4 % 2).float().expand(8, 3, 48, 48))
    sharp = AugmentConfig(scale=(0.2, 0.4), train_interpolation="bicubic")
    assert random_resized_crop(edges, sharp.scale, sharp.ratio, "bicubic").amax() > edges.amax() + 0.05
    out = Augmentation(sharp, SPEC)(edges)
    assert out.amax() <= edges.amax() + 1e-5 and out.amin() >= edges.amin() - 1e-5


@pytest.mark.parametrize("count", [1, 3])
def test_erasing_is_timms_in_distribution(count):
    n = 1500
    torch.manual_seed(0), random.seed(0)
    theirs = RandomErasing(0.5, mode="const", max_count=count, device="cpu")(torch.full((n, 3, 24, 32), 7.0))
    erased = {"ours": erase(torch.full((n, 3, 24, 32), 7.0), 0.5, "const", count) == 0, "theirs": theirs == 0}
    share = {who: found.float().mean((1, 2, 3)) for who, found in erased.items()}
    assert abs((share["ours"] > 0).float().mean() - (share["theirs"] > 0).float().mean()) < 0.06
    assert abs(share["ours"].mean() - share["theirs"].mean()) < 0.01
    assert abs(share["ours"].std() - share["theirs"].std()) < 0.01
    assert (erased["ours"].float().mean((0, 1)) - erased["theirs"].float().mean((0, 1))).abs().max() < 0.06


def test_erased_boxes_are_filled_as_the_mode_says():
    torch.manual_seed(0)
    pixels = torch.full((64, 3, 24, 24), 7.0)
    const, colour, noise = (erase(pixels, 1.0, mode) for mode in ("const", "rand", "pixel"))
    assert set(const.unique().tolist()) == {0.0, 7.0}
    assert all(len(channel.unique()) == 2 for image in colour for channel in image)
    assert len(colour.unique()) == 1 + 64 * 3
    filled = noise[noise != 7]
    assert len(filled.unique()) > 0.99 * len(filled)
    assert abs(filled.mean()) < 0.05 and abs(filled.std() - 1) < 0.05
    assert (pixels == 7).all()


def test_a_seed_gives_the_same_pictures_and_another_others():
    augmentation = Augmentation(EVERYTHING, SPEC)
    before = PIXELS.clone()
    runs = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        runs.append(augmentation(PIXELS))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(PIXELS, before)
    assert runs[0].shape == PIXELS.shape and runs[0].isfinite().all()


def test_equal_images_come_out_different():
    out = Augmentation(EVERYTHING, SPEC)(PIXELS[:1].expand(32, -1, -1, -1))
    assert len({image.numpy().tobytes() for image in out}) == 32


@pytest.mark.parametrize("n", [0, 1])
def test_batches_of_none_and_one_pass(n):
    assert Augmentation(EVERYTHING, SPEC)(PIXELS[:n]).shape == (n, 3, 48, 48)


@pytest.mark.parametrize(("options", "other"), [({"aa": "v0"}, False), ({"aa": "3a"}, True), ({}, True)])
def test_jitter_acts_beside_no_policy_but_3a(options, other):
    """With the same random numbers, jitter changes the result or not."""
    runs = []
    for strength in (0.0, 0.4):
        torch.manual_seed(1)
        runs.append(Augmentation(AugmentConfig(color_jitter=strength, **options), SPEC)(PIXELS))
    assert torch.equal(*runs) is not other


@pytest.mark.parametrize("options", [{"aa": "rand-m9-mstd0.5-inc1"}, {"color_jitter": (0.1, 0.2, 0.3, 0.4)}])
def test_policies_and_jitter_do_to_each_image_what_timms_steps_do(options):
    config = AugmentConfig(**options)
    torch.manual_seed(3)
    ours = Augmentation(config, SPEC)(PIXELS)
    torch.manual_seed(3)
    torch.rand(len(PIXELS)), torch.rand(len(PIXELS))  # of the flips
    with seeded(tuple(torch.randint(1 << 31, (3,)).tolist())):
        theirs = []
        for picture in PICTURES:
            for step in colour_steps(config, SPEC):
                picture = step(picture)
            theirs.append(torch.as_tensor(picture))
    torch.testing.assert_close(SPEC.restore(ours) * 255, torch.stack(theirs).float(), atol=1e-3, rtol=0)
    assert len({image.numpy().tobytes() for image in ours}) == len(ours)


@pytest.mark.parametrize(
    "options",
    [
        {"scale": (0.0, 1.0)},
        {"ratio": (2.0, 1.0)},
        {"hflip": 1.5},
        {"color_jitter": (0.1, 0.2)},
        {"color_jitter": (0, 0, 0, 0.6)},
        {"remode": "white"},
        {"recount": 0},
        {"train_interpolation": "lanczos"},
        {"mixup": -1.0},
        {"mixup_mode": "half"},
        {"cutmix_minmax": (0.8, 0.2)},
    ],
)
def test_options_out_of_range_are_refused_by_name(options):
    with pytest.raises(InputError, match=next(iter(options))):
        AugmentConfig(**options)


@pytest.mark.gpu
def test_a_gpu_makes_the_same_pictures(gpu):
    options = AugmentConfig(scale=(0.3, 1.0), ratio=(3 / 4, 4 / 3), hflip=0.5, aa="rand-m9-mstd0.5-inc1")
    augmentation = Augmentation(options, SPEC)
    runs = []
    for device in ("cpu", gpu):
        torch.manual_seed(1)
        runs.append(augmentation(PIXELS.to(device)).cpu())
    assert (runs[0] - runs[1]).abs().mean() < 0.01
