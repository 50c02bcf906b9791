"""Positions of tokens that form no complete grid: patches that are masked, dropped or in another order.

Question: which patch does each token stand for? Choice: number the patches, and for each binary digit change those
whose number has a 1 there. V of a token that depends on one patch alone responds either in full, as if every patch had
changed, or not at all, so its digits are read off, whatever the model computes between pixels and V. That takes
log2(patches) + 3 passes: nothing changed, everything, each digit, and nothing again, since a selection that is drawn
anew in each pass has no places. A selection may depend on the image, so an image of noise runs beside the model's own:
its tokens must stand for the same patches.

Source: ours. Checked against known selections in tests/capturing/test_scattered.py.
"""

from collections.abc import Sequence
from functools import reduce

import torch
from torch import Tensor

from attnprobe.capturing.places import SEED, SIZE, UNMOVED, Places, Responses
from attnprobe.core.grid import TokenGrid

ANEW = "its tokens are selected anew in each forward pass"

OF_IMAGE = "which patches its tokens stand for depends on the image"

LOCAL = 0.5
"""Largest typical extent of a token, as a share of the image, for which its patch is searched."""

LIKE = 1.6
"""Largest ratio between the side of a patch and the measured extent of tokens."""

ALONE = 0.05
"""Largest share of a token's squared response that may come from other patches than its own."""

EXCHANGED = 2.0
"""Share above which a token was exchanged for that of another patch; merged with it, it would respond less."""


def patch_sizes(found: Responses, size: tuple[int, int], strides: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sizes of patches in pixels that tokens with these responses may have, the likeliest first.

    Args:
        size: rows and columns of the image in pixels.
        strides: sizes of patches that convolutions of the model cut.

    Returns:
        Those of the model, then sizes that divide the image; none where tokens depend on much of it.
    """
    extent = [found.height.nanmedian().item() * size[0], found.width.nanmedian().item() * size[1]]
    if not max(e / side for e, side in zip(extent, size, strict=True)) <= LOCAL:
        return []

    def ratio(patch: tuple[int, int]) -> float:
        return max(max(e / side, side / e) for e, side in zip(extent, patch, strict=True))

    heights, widths = ([n for n in range(1, side + 1) if side % n == 0] for side in size)
    others = sorted(((height, width) for height in heights for width in widths), key=ratio)
    return [patch for patch in dict.fromkeys([*sorted(strides, key=ratio), *others]) if ratio(patch) <= LIKE]


def coded_images(image: Tensor, patch: tuple[int, int]) -> list[Tensor]:
    """[2, channel, row, col] for each pass: the image and one of noise, changed in some of their patches."""
    generator = torch.Generator().manual_seed(SEED)
    other, noise = (torch.randn(image.shape, generator=generator).to(image) for _ in range(2))
    return [torch.stack([image, other]) + change for change in _changes(image, noise, _digits(image, patch))]


def trial_images(image: Tensor, patch: tuple[int, int]) -> Tensor:
    """[2, channel, row, col]: the image with every patch changed, and with every second one, as on a chequerboard."""
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(SEED)).to(image)
    row, col = _patch_of_pixels(image, patch)
    return torch.stack([image + change for change in _changes(image, noise, [(row + col) % 2 == 1])[1:3]])


def _changes(image: Tensor, noise: Tensor, masks: Sequence[Tensor]) -> list[Tensor]:
    """Changes of an image nowhere, everywhere, at each mask [row, col], nowhere."""
    small = noise * SIZE.get(image.dtype, 0.02)
    return [0 * small, small, *(mask.to(image) * small for mask in masks), 0 * small]


def _digits(image: Tensor, patch: tuple[int, int]) -> list[Tensor]:
    """[row, col] for each binary digit of the patches' numbers, True where a pixel's patch has it."""
    row, col = _patch_of_pixels(image, patch)
    number = row * (col.max() + 1) + col
    return [(number >> i & 1).bool() for i in range(int(number.max()).bit_length())]


def _patch_of_pixels(image: Tensor, patch: tuple[int, int]) -> tuple[Tensor, Tensor]:
    row, col = (torch.arange(n, device=image.device) // step for n, step in zip(image.shape[-2:], patch, strict=True))
    return row[:, None].expand(-1, len(col)), col.expand(len(row), -1)


def read_positions(
    passes: Sequence[Tensor], size: tuple[int, int], patch: tuple[int, int], prefix: tuple[str, ...] = ()
) -> Places:
    """The patch of each token from V of the `coded_images`, or the reason why it has none.

    Args:
        passes: [2, token, feature] of each.
        size: rows and columns of the image in pixels; `patch`: of a patch.
        prefix: names of prefix tokens that the model may have, in order.
    """
    if len({values.shape for values in passes}) > 1:
        return Places("unknown", "the number of its tokens depends on the image")
    seen = torch.stack([values.double() for values in passes])
    whole, *digits, again = (seen[1:] - seen[0]).unbind()
    power = whole.square().sum(-1)
    if (again.square().sum(-1) > UNMOVED * power.amax(-1, keepdim=True)).any():
        return Places("unknown", ANEW)
    moved, responds, reason = _responds(whole, digits)
    if reason:
        return Places("unknown", reason)
    number = sum((full.long() << i for i, full in enumerate(responds)), torch.zeros_like(moved, dtype=torch.long))
    number = number.where(moved, -1)
    if not torch.equal(*number):
        return Places("unknown", OF_IMAGE)
    rows, cols = (-(-side // step) for side, step in zip(size, patch, strict=True))
    return _placed(number[0].tolist(), (rows, cols), patch, prefix)


def why_not_alone(base: Tensor, changed: Tensor) -> str:
    """Reason why tokens do not stand for one patch each, by V of the image and of its `trial_images`; "" if they may.

    Args:
        base: [token, feature]; `changed`: [2, token, feature].
    """
    whole, half = changed.double() - base.double()
    return _responds(whole[None], [half[None]])[2]


def _responds(whole: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, list[Tensor], str]:
    """Tokens that respond at all, those that respond to each part of the changes, and the reason if some do so in part.

    Args:
        whole: response [image, token, feature] to the change of every patch; `parts`: of some patches.
    """
    power = whole.square().sum(-1)
    moved = power > UNMOVED * power.amax(-1, keepdim=True)
    full = [2 * (part * whole).sum(-1) > power for part in parts]
    rests = (part - whole * responds[..., None] for part, responds in zip(parts, full, strict=True))
    rest = reduce(torch.maximum, (unexplained.square().sum(-1) for unexplained in rests))
    rest = rest / power.where(moved, torch.inf)
    several = int((rest > ALONE).any(0).sum())
    if (rest > EXCHANGED).any():
        return moved, full, OF_IMAGE
    reason = f"{several} of its tokens depend on several patches each: merged, or mixed with others"
    return moved, full, reason if several else ""


def _placed(position: list[int], shape: tuple[int, int], patch: tuple[int, int], prefix: tuple[str, ...]) -> Places:
    patches = [number for number in position if number >= 0]
    if len(set(patches)) < len(patches):
        return Places(
            "unknown", "several of its tokens stand for one place in the image, as of frames, scales or views"
        )
    n_prefix = len(position) - len(patches)
    names = prefix[:n_prefix] if n_prefix <= len(prefix) else tuple(f"prefix{i}" for i in range(n_prefix))
    usual = position == [-1] * n_prefix + list(range(shape[0] * shape[1]))
    return Places("proved", "", TokenGrid(*shape, names, patch, None if usual else tuple(position)))
