"""timm's transforms: all options arrive, a picture follows from its key, Pillow may be strict."""

import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm_ops
from timm.data import create_transform

from attnprobe.core.errors import InputError
from attnprobe.core.images import InputSpec
from attnprobe.training.config import AugmentConfig
from attnprobe.training.transforms import TrainTransform, posterize, seeded, train_transform
from tests.training.photos import as_bytes, photographs

SPEC = InputSpec((32, 24))
PICTURE = photographs(64)[0]
EVERYTHING = AugmentConfig(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), hflip=0.5, vflip=0.2, aa="rand-m9-mstd0.5-inc1")


def test_every_option_arrives():
    transform = train_transform(EVERYTHING, SPEC)
    crop, *flips = transform.primary
    assert (crop.size, crop.scale, crop.ratio) == ((32, 24), (0.08, 1.0), (3 / 4, 4 / 3))
    assert [flip.probability for flip in flips] == [0.5, 0.2] and "m=9, mstd=0.5" in repr(transform.colour)
    jitter = AugmentConfig(color_jitter=(0.1, 0.2, 0.3, 0.4), color_jitter_prob=0.8, train_interpolation="bicubic")
    shown = repr((*(jittered := train_transform(jitter, SPEC)).colour, jittered.primary[0]))
    for part in ("brightness=(0.9, 1.1)", "hue=(-0.4, 0.4)", "p=0.8", "bicubic"):
        assert part in shown
    assert "AugMix" in repr(train_transform(AugmentConfig(aa="augmix-m3-w3"), SPEC).colour)


@pytest.mark.parametrize("config", [EVERYTHING, AugmentConfig(scale=(0.5, 1.0), hflip=0.5), AugmentConfig(aa="v0")])
def test_pixels_are_those_of_timms_own_transform(config):
    whole = create_transform(
        (3, *SPEC.size), is_training=True, use_prefetcher=True, scale=config.scale, ratio=config.ratio,
        hflip=config.hflip, vflip=config.vflip, color_jitter=0.0, auto_augment=config.aa, interpolation="random",
        mean=SPEC.mean,
    )  # fmt: skip
    transform = train_transform(config, SPEC)
    for key in range(20):
        with seeded((key,)):
            expected = torch.as_tensor(whole(PICTURE))
        assert torch.equal(transform(PICTURE, 0, (key,)), expected)


def test_the_place_with_a_label_map_is_where_the_pixels_are():
    """A picture whose red and green are its coordinates tells by itself which part it shows."""
    size = 128
    ramp = (torch.arange(size) * 2).to(torch.uint8)
    picture = torch.stack([ramp.expand(size, size), ramp.view(-1, 1).expand(size, size), torch.zeros(size, size)], -1)
    image = Image.fromarray(picture.to(torch.uint8).numpy())
    config = AugmentConfig(scale=(0.1, 0.6), ratio=(0.5, 2.0), hflip=0.5, vflip=0.5, train_interpolation="bilinear")
    transform = train_transform(config, SPEC, label_maps=lambda position: torch.tensor(position))
    seen = set()
    for key in range(30):
        pixels, label_map, place = transform(image, 7, (key,))
        left, top, right, bottom, mirrored, upside_down = place.tolist()
        seen.add((mirrored, upside_down))
        assert label_map == 7
        rows, cols = (torch.arange(n).add(0.5).div(n) for n in SPEC.size)
        across = (1 - cols if mirrored else cols) * (right - left) + left
        down = (1 - rows if upside_down else rows) * (bottom - top) + top
        assert (pixels[0] / 255 - across).abs().max() < 0.03 and (pixels[1] / 255 - down.view(-1, 1)).abs().max() < 0.03
    assert len(seen) == 4


def test_a_key_gives_one_picture_whatever_came_before():
    transform = train_transform(EVERYTHING, SPEC)
    first = [transform(PICTURE, position, (42, 0, position)) for position in range(20)]
    random.seed(5), np.random.seed(5), torch.manual_seed(5)
    again = [transform(PICTURE, position, (42, 0, position)) for position in reversed(range(20))]
    assert all(torch.equal(a, b) for a, b in zip(first, reversed(again), strict=True))
    assert len({pixels.numpy().tobytes() for pixels in first}) == 20
    assert not torch.equal(first[3], transform(PICTURE, 3, (42, 1, 3)))
    assert first[0].dtype == torch.uint8 and first[0].shape == (3, 32, 24)


def test_the_callers_generators_go_on_undisturbed():
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = [draw(), draw()]
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    found = [draw()]
    train_transform(EVERYTHING, SPEC)(PICTURE, 0, (0,))
    assert [*found, draw()] == expected


def test_it_travels_to_a_worker_process():
    transform = train_transform(EVERYTHING, SPEC)
    sent = pickle.loads(pickle.dumps(transform))
    assert isinstance(sent, TrainTransform)
    assert torch.equal(sent(PICTURE, 3, (1, 2, 3)), transform(PICTURE, 3, (1, 2, 3)))


@pytest.mark.parametrize("text", ["rand-m10-inc1-p1-n4", "rand-m1-p1-n4", "v0", "v0r", "augmix-m10-w2-d4"])
def test_no_bit_kept_is_black_and_no_error(text):
    transform = train_transform(AugmentConfig(aa=text), SPEC)
    for position in range(60):
        pixels = torch.as_tensor(transform(PICTURE, position, (position,)))
        assert pixels.shape == (3, *SPEC.size) and pixels.isfinite().all()


def test_posterisation_is_timms_where_pillow_takes_it():
    for bits in (1, 4, 8):
        assert posterize(PICTURE, bits).tobytes() == timm_ops.posterize(PICTURE, bits).tobytes()
    assert as_bytes([posterize(PICTURE, 0)]).max() == 0
    assert posterize(PICTURE, -2).size == PICTURE.size


def test_timm_itself_is_left_alone():
    before = timm_ops.NAME_TO_OP["Posterize"]
    train_transform(AugmentConfig(aa="v0"), SPEC)
    assert timm_ops.NAME_TO_OP["Posterize"] is before is timm_ops.posterize


REFUSED = "rnd-m9 v1 v7 v0-m9 rand- rand-m rand-x3 rand-m9.5 rand-w0 rand-tfoo rand-n0 rand-p2 rand-n16-tweights"


@pytest.mark.parametrize("text", [*REFUSED.split(), "rand-m9-mstd0.5-inc1-", "rand-m9-x4", "augmix-q3", "augmix-m3.5"])
def test_a_policy_that_timm_would_misread_is_refused(text):
    with pytest.raises(InputError, match=f"aa='{text}'"):
        train_transform(AugmentConfig(aa=text), SPEC)


ACCEPTED = "rand rand-inc0 rand-t3aw-inc1 rand-m12-mmax20-mstd101 rand-n3-p1-tweights rand-m3-n4-p0.7 v0r-mstd0.5"


@pytest.mark.parametrize("text", [*ACCEPTED.split(), "originalr", "3a", "augmix"])
def test_policies_in_timms_spelling_are_read(text):
    assert train_transform(AugmentConfig(aa=text), SPEC)(PICTURE, 0, (1,)).shape == (3, 32, 24)
