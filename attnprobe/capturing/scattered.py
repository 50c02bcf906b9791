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
    changes = (mask.to(image) * noise * SIZE.get(image.dtype, 0.02) for mask in _masks(image, patch))
    return [torch.stack([image, other]) + change for change in changes]


def _masks(image: Tensor, patch: tuple[int, int]) -> list[Tensor]:
    """[row, col] for each pass, True where pixels change: nowhere, everywhere, at each binary digit, nowhere."""
    row, col = (torch.arange(n, device=image.device) // step for n, step in zip(image.shape[-2:], patch, strict=True))
    number = row[:, None] * (col[-1] + 1) + col
    digits = [(number >> i & 1).bool() for i in range(int(number.max()).bit_length())]
    return [number < 0, number >= 0, *digits, number < 0]


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
    power = whole.square().sum(-1)  # [image, token]
    least = UNMOVED * power.amax(-1, keepdim=True)
    if (again.square().sum(-1) > least).any():
        return Places("unknown", ANEW)
    moved = power > least
    responds = [2 * (part * whole).sum(-1) > power for part in digits]
    unexplained = [part - whole * full[..., None] for part, full in zip(digits, responds, strict=True)]
    rest = reduce(torch.maximum, (part.square().sum(-1) for part in unexplained)) / power.where(moved, torch.inf)
    number = sum((full.long() << i for i, full in enumerate(responds)), torch.zeros_like(moved, dtype=torch.long))
    number = number.where(moved, -1)
    alone = rest <= ALONE
    if (rest > EXCHANGED).any() or (alone.all() and not torch.equal(*number)):
        return Places("unknown", "which patches its tokens stand for depends on the image")
    if not alone.all():
        n = int((~alone).any(0).sum())
        return Places("unknown", f"{n} of its tokens depend on several patches each: merged, or mixed with others")
    rows, cols = (-(-side // step) for side, step in zip(size, patch, strict=True))
    return _placed(number[0].tolist(), (rows, cols), patch, prefix)


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
