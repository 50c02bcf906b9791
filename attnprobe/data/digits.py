"""The 1,797 handwritten digits that come with scikit-learn.

8 x 8 pixels of 17 grey values; the test half of Alpaydin and Kaynak 1998, "Optical Recognition of Handwritten
Digits", UCI Machine Learning Repository.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from attnprobe.core.errors import InputError
from attnprobe.core.images import InputSpec
from attnprobe.data.device_resident import DeviceResident
from attnprobe.data.order import balanced_subset

N_VAL = 360
"""36 of every digit; the other 1,437 are for training."""

WHITE = 16
"""The brightest of the 17 grey values."""


def whole_picture(pixels: Tensor, spec: InputSpec) -> Tensor:
    """[image, 1, 8, 8], 0 to `WHITE` -> [image, 1, *spec.size] in [0, 1]; `spec.crop_pct` has no effect.

    Bicubic unless the spec says bilinear, clipped and not rounded to bytes: grey values are 0 to 16. Shrinking is
    antialiased.
    """
    shown = pixels.float() / WHITE
    if shown.shape[-2:] == tuple(spec.size):
        return shown
    mode = "bilinear" if spec.interpolation == "bilinear" else "bicubic"
    shrinks = min(spec.size) < 8
    return F.interpolate(shown, size=tuple(spec.size), mode=mode, align_corners=False, antialias=shrinks).clamp(0, 1)


def digits(name: str = "digits", split: str = "val", *, spec: InputSpec, limit: int | None = None) -> DeviceResident:
    """The digits of one split, resized to `spec.size` on the device. An id is "digits/" and the row in scikit-learn.

    Raises:
        InputError: no such split.
    """
    from sklearn.datasets import load_digits  # 0.9 s, and only this set needs it

    if split not in ("train", "val"):
        raise InputError(f"{name} has no split {split!r}; it has train and val.")
    images, targets = (np.asarray(part) for part in load_digits(return_X_y=True))
    ids = [f"digits/{row:04d}" for row in range(len(targets))]
    val = set(balanced_subset(ids, targets.tolist(), N_VAL))
    rows = [row for row in range(len(ids)) if (row in val) == (split == "val")]
    rows = [rows[k] for k in balanced_subset([ids[r] for r in rows], targets[rows].tolist(), limit)]
    return DeviceResident(
        f"digits/{split}",
        spec,
        pixels=torch.from_numpy(images[rows]).to(torch.uint8).view(-1, 1, 8, 8),
        labels=torch.from_numpy(targets[rows]),
        ids=tuple(ids[row] for row in rows),
        class_names=tuple(str(c) for c in range(10)),
        fingerprint=f"digits:1 split={split} images={len(rows)}",
        show=whole_picture,
    )
