"""Fractals: procedural images of any number of classes, without a download.

A class is a system of two to four contracting affine maps and its images are drawings of the attractor, as in
Kataoka et al. 2020, "Pre-training without Natural Images", arXiv:2101.08515 (FractalDB). Maps are drawn through
their singular values, as in Anderson and Farrell 2022, "Improving Fractal Pre-training", arXiv:2110.03091.
Departures: a class is accepted by its fill rate alone; its images differ by small changes of all entries, a
random linear view and random colours, so that colour says nothing about the class.
"""

import re
from collections.abc import Iterator

import numpy as np
import torch

from attnprobe.core.devices import on_device
from attnprobe.core.errors import InputError
from attnprobe.core.images import ImageBatch, InputSpec, Order, position_batches
from attnprobe.data.chaos_game import density, render, uniform
from attnprobe.data.order import ListedImages

N_MAPS = 4
"""Maximum number of maps of a class; missing ones have probability 0."""

LARGEST_SINGULAR_VALUE = 0.85
JITTER = 0.03
"""Maximum change of an entry between images of a class. It moves a singular value by at most twice that, and
0.85 + 0.06 < 1: every image's maps contract."""

VIEW = 0.2
"""Largest entry of view - identity: turns by up to 11 degrees, with shear and stretch."""

FILL_RATE = (0.2, 0.7)
"""Range of the fraction of 32 x 32 pixels that a class visits: below, dust and lines; above, a blob. 4 draws in 10
pass."""

FIRST_VAL_INDEX = 1 << 40
"""Training images of a class count from 0 and validation images from here, so they never meet."""

CLASS_DRAWS, IMAGE_DRAWS = 1, 2


def draw_systems(seed: int, classes: np.ndarray, attempts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Candidate systems of some classes: maps [class, map, 6] and their shares [class, map], float64."""
    which_map, which_number = np.arange(N_MAPS)[:, None], np.arange(9)
    draw = uniform(CLASS_DRAWS, seed, classes[:, None, None], attempts[:, None, None], which_map, which_number)
    tangent = 2 * draw[..., :2] - 1  # of half the angle: rotations by -90 to 90 degrees without a sine
    cos_1, cos_2 = np.moveaxis((1 - tangent**2) / (1 + tangent**2), -1, 0)
    sin_1, sin_2 = np.moveaxis(2 * tangent / (1 + tangent**2), -1, 0)
    large = LARGEST_SINGULAR_VALUE * (0.4 + 0.6 * draw[..., 2])
    small = large * (0.25 + 0.75 * draw[..., 3])
    flip_x, flip_y = np.where(draw[..., 4:6] < 0.5, -1, 1).transpose(2, 0, 1)
    entries = (  # R(angle 1) diag(large, small) R(angle 2) diag(flip_x, flip_y), and the shift
        (cos_1 * large * cos_2 - sin_1 * small * sin_2) * flip_x,
        (-cos_1 * large * sin_2 - sin_1 * small * cos_2) * flip_y,
        (sin_1 * large * cos_2 + cos_1 * small * sin_2) * flip_x,
        (-sin_1 * large * sin_2 + cos_1 * small * cos_2) * flip_y,
        2 * draw[..., 6] - 1,
        2 * draw[..., 7] - 1,
    )
    n_maps = 2 + (draw[:, :1, 8] * (N_MAPS - 1)).astype(int)
    area = np.where(np.arange(N_MAPS) < n_maps, np.maximum(large * small, 0.05), 0)
    return np.stack(entries, axis=-1), area / area.sum(1, keepdims=True)


def accepted_systems(seed: int, n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    """The first candidate of every class whose fill rate lies in `FILL_RATE`."""
    attempts, pending = np.zeros(n_classes, dtype=int), np.arange(n_classes)
    while len(pending):
        maps, shares = draw_systems(seed, pending, attempts[pending])
        visited = density(torch.from_numpy(maps).float(), torch.from_numpy(shares).float(), (32, 32)).sum(1) > 0
        fill = visited.float().mean((1, 2)).numpy()
        pending = pending[(fill < FILL_RATE[0]) | (fill > FILL_RATE[1])]
        attempts[pending] += 1
    return draw_systems(seed, np.arange(n_classes), attempts)


class Fractals(ListedImages):
    """An `ImageSource` of fractals: image k is number k // classes of class k % classes; only maps are kept in memory.

    Every prefix is balanced over classes. On the CPU an image has the same bits in whatever batch it is drawn.
    """

    def __init__(self, split: str, spec: InputSpec, n_classes: int, per_class: int, seed: int, limit: int | None):
        n_images = min(n_classes * per_class, limit or n_classes * per_class)
        super().__init__(
            f"fractals:{n_classes}/{split}",
            spec,
            ids=tuple(f"fractals/{seed}/{split}/{k % n_classes}/{k // n_classes}" for k in range(n_images)),
            class_names=tuple(f"fractal{c}" for c in range(n_classes)),
            fingerprint=f"fractals:1 seed={seed} classes={n_classes} split={split} images={n_images}",
        )
        self.split, self.seed = split, seed
        self.maps, self.shares = accepted_systems(seed, n_classes)

    def batches(
        self, batch_size: int, *, device: torch.device | str = "cpu", order: Order | None = None
    ) -> Iterator[ImageBatch]:
        """Draw the images at positions `order` (all, if None) on `device`."""
        first = FIRST_VAL_INDEX if self.split == "val" else 0
        n_classes = len(self.class_names)
        for positions in position_batches(len(self), batch_size, order):
            index, label = np.divmod(np.array(positions), n_classes)
            n_numbers = N_MAPS * 6 + 4 + N_MAPS * 3
            draw = uniform(IMAGE_DRAWS, self.seed, label[:, None], first + index[:, None], np.arange(n_numbers))
            jitter, view, colour = np.split(draw, [N_MAPS * 6, N_MAPS * 6 + 4], axis=1)
            maps = self.maps[label] + JITTER * (2 * jitter.reshape(-1, N_MAPS, 6) - 1)
            view = np.eye(2).flatten() + VIEW * (2 * view - 1)
            palette = 0.3 + 0.7 * colour.reshape(-1, N_MAPS, 3)
            drawn = (torch.from_numpy(part).float() for part in (maps, self.shares[label], view, palette))
            *system, labels = on_device(torch.device(device), *drawn, torch.from_numpy(label))
            pictures = render(*system, size=self.spec.size)
            ids = tuple(self.ids[position] for position in positions)
            yield ImageBatch(self.spec.normalise(pictures), labels, ids)


def fractals(
    name: str = "fractals",
    split: str = "val",
    *,
    spec: InputSpec,
    limit: int | None = None,
    seed: int = 0,
    classes: int | None = None,
    per_class: int | None = None,
) -> Fractals:
    """Fractals by name: "fractals" (20 classes), "fractals:CLASSES" or "fractals:CLASSES:PER_CLASS".

    `per_class` counts training images (500); validation has a tenth of them. Other seeds are other classes.

    Raises:
        InputError: no such split, or numbers out of range.
    """
    written = re.fullmatch(r"fractals(?::(\d+)(?::(\d+))?)?", name)
    if not written or (written[1] and classes is not None) or (written[2] and per_class is not None):
        raise InputError(
            "fractals are 'fractals:CLASSES:PER_CLASS' in whole numbers, each there or as an option, "
            f"got {name!r}, classes={classes}, per_class={per_class}."
        )
    n_classes = int(written[1] or (20 if classes is None else classes))
    per_class = int(written[2] or (500 if per_class is None else per_class))
    if split not in ("train", "val"):
        raise InputError(f"{name} has no split {split!r}; it has train and val.")
    if n_classes < 2 or per_class < 1 or seed < 0:
        raise InputError(
            "fractals need at least 2 classes, 1 image per class and a seed of 0 or more, "
            f"got classes={n_classes}, per_class={per_class}, seed={seed}."
        )
    return Fractals(split, spec, n_classes, per_class if split == "train" else max(1, per_class // 10), seed, limit)
