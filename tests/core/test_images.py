"""Pictures are told apart by what a model sees of them, whatever their normalisation."""

import torch

from attnprobe.core.images import InputSpec, as_seen, pixel_hashes

SPECS = [InputSpec(), InputSpec(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))]


def hashes(pixels, spec):
    return pixel_hashes(as_seen(pixels, spec))


def pictures(n=6):
    return torch.randint(0, 256, (n, 3, 8, 8), generator=torch.Generator().manual_seed(0)) / 255


def test_equal_pictures_have_equal_hashes_and_others_do_not():
    pixels = pictures()
    pixels[4] = pixels[1]
    found = hashes(SPECS[0].normalise(pixels), SPECS[0])
    assert found[4] == found[1] and len(set(found.tolist())) == 5 and (found != 0).all()
    changed = pixels.clone()
    changed[0, 0, 0, 0] = (changed[0, 0, 0, 0] + 1 / 255) % 1
    assert hashes(SPECS[0].normalise(changed), SPECS[0])[0] != found[0]


def test_normalisation_batches_and_the_last_bit_do_not_matter():
    pixels = pictures()
    one, two = (hashes(spec.normalise(pixels), spec) for spec in SPECS)
    assert torch.equal(one, two)
    assert torch.equal(one[2:3], hashes(SPECS[0].normalise(pixels[2:3]), SPECS[0]))
    noisy = SPECS[0].normalise(pixels) * (1 + 1e-6)
    assert torch.equal(one, hashes(noisy, SPECS[0]))


def test_tensors_without_a_spec_are_told_apart_by_their_numbers():
    pixels = torch.randn(3, 3, 4, 4)
    pixels[2] = pixels[0]
    found = hashes(pixels, None)
    assert found[0] == found[2] != found[1]
