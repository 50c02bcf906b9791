"""Label maps: a teacher's classes for every patch of the training images, as TokenLabeling released them.

Jiang et al. 2021, arXiv:2104.10858. Every training image .../n01440764/n01440764_10026.JPEG has a file

    ROOT/n01440764/n01440764_10026.pt     [2, k, row, col]: the k largest logits of a place, and their classes

Training crops and flips the map as it does the image; a policy of `aa` (shear, rotation) does not move the map. Label
maps are not smoothed.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor
from torchvision.ops import roi_align

from attnprobe.core.errors import InputError
from attnprobe.io import fs
from attnprobe.io.pickles import load_tensors


class LabelMaps:
    """A function of a position that reads the label map [2, k, row, col] of `ids[position]`; it pickles, for workers.

    Args:
        root: the folder of the maps.
        ids: of the training images; the last two parts are the class's folder and the file.
        num_classes: of the model; maps that name a higher class are refused.

    Raises:
        InputError: no map of the first image; and from a call, a file that is not a label map.
    """

    def __init__(self, root: Path, ids: Sequence[str], num_classes: int) -> None:
        self.files = [(root / PurePosixPath(*PurePosixPath(name).parts[-2:]).with_suffix(".pt")) for name in ids]
        self.num_classes = num_classes
        if not self.files[0].is_file():
            raise InputError(
                f"token_label_data={str(root)!r} has no label map {self.files[0].relative_to(root)} of the first "
                "training image; expected CLASS/IMAGE.pt, as TokenLabeling's releases unpack."
            )

    def __call__(self, position: int) -> Tensor:
        file = self.files[position]
        try:
            with fs.open_regular(file) as opened:
                maps = load_tensors(opened)
        except Exception as error:
            raise InputError(f"label map {file} cannot be read: {str(error).splitlines()[0]}") from error
        if not isinstance(maps, Tensor) or maps.ndim != 4 or maps.shape[0] != 2:
            got = f"shape {tuple(maps.shape)}" if isinstance(maps, Tensor) else type(maps).__name__
            raise InputError(f"label map {file}: expected a tensor [2, k, row, col], got {got}.")
        if not 0 <= maps[1].min() <= maps[1].max() < self.num_classes:
            raise InputError(f"label map {file} names class {maps[1].max():.0f}; the model has {self.num_classes}.")
        return maps


def token_targets(maps: Tensor, places: Tensor, num_classes: int, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Targets of images and of their patches: the softmax of the teacher's logits, averaged over the area.

    Classes that are not among a place's k largest count as logit 0 there.

    Args:
        maps: [image, 2, k, row, col], see `LabelMaps`.
        places: [image, 6], the crop (left, top, right, bottom, as fractions of width and height), and whether it was
            then mirrored left to right and upside down (0 or 1).
        grid: rows and columns of patches.

    Returns:
        [image, class] and [image, patch, class], probabilities.
    """
    values, classes = maps[:, 0].float(), maps[:, 1].long()
    n, _, rows, cols = values.shape
    logits = values.new_zeros(n, num_classes, rows, cols).scatter_(1, classes, values)
    index = torch.arange(n, device=maps.device).unsqueeze(1)
    boxes = torch.cat([index, places[:, :4] * places.new_tensor([cols, rows, cols, rows])], 1)
    whole = roi_align(logits, boxes, 1, aligned=True).flatten(1)
    patches = roi_align(logits, boxes, grid, aligned=True)
    for axis, flag in ((-1, places[:, 4]), (-2, places[:, 5])):
        patches = torch.where(flag.view(-1, 1, 1, 1) > 0, patches.flip(axis), patches)
    return whole.softmax(1), patches.flatten(2).mT.softmax(2)
