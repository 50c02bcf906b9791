"""Images of a capture in any usual form: tensors, arrays, lists, data loaders, a processor's dictionary."""

from collections.abc import Iterable, Iterator, Mapping, Sized
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnprobe.core.errors import InputError
from attnprobe.core.images import ImageSource

PREPARE = "ap.load_images(..., spec=ap.input_spec(model)) prepares images for a model"


def as_images(images: Any) -> ImageSource | Tensor:
    """An `ImageSource` as it is; anything else as pixels [image, channel, ..., row, col] of a float type.

    Taken are tensors, NumPy arrays, one image without the first axis, lists and generators of images or batches, data
    sets and loaders whose items are pixels or begin with pixels, and dictionaries with `pixel_values`.

    Raises:
        InputError: bytes, paths, pictures, and whatever holds no pixels; the message says what to pass instead.
    """
    if hasattr(images, "batches"):
        return images
    if isinstance(images, str | PathLike):
        raise InputError(f"{images!s:.80} is a path; {PREPARE}: pass what it returns.")
    if isinstance(images, Tensor | np.ndarray | Mapping) or _is_picture(images):
        return _batch(images)
    if not isinstance(images, Iterable) and not (isinstance(images, Sized) and hasattr(images, "__getitem__")):
        raise InputError(f"a capture needs images, got {type(images).__name__}; pass pixels, or what {PREPARE}.")
    if isinstance(images, tuple) and len(images) == 2 and _are_labels(images[1]):
        return _batch(images[0])
    parts = [_batch(item) for item in _items(images)]
    if not parts:
        return torch.empty(0, 3, 0, 0)
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise InputError(f"the images have several shapes, {sorted(shapes)[:3]}; resize them to one, as {PREPARE}.")
    return torch.cat(parts)


def _items(images: Any) -> Iterator[Any]:
    """Items of an iterable, or of a data set that only has a length and positions."""
    if isinstance(images, Iterable):
        yield from images
    else:
        yield from (images[i] for i in range(len(images)))


def _batch(item: Any) -> Tensor:
    """One item as pixels [image, channel, ..., row, col]."""
    if isinstance(item, Mapping):
        name = next((name for name in ("pixel_values", "image", "images", "pixels") if name in item), None)
        if name is None:
            raise InputError(f"a dictionary of images needs 'pixel_values', got {', '.join(map(str, item)):.80}.")
        return _batch(item[name])
    if isinstance(item, tuple | list) and item and isinstance(item[0], Tensor | np.ndarray):
        return _batch(item[0])
    if _is_picture(item):
        raise InputError(f"pictures have no size and scale that a model wants; save them in a folder: {PREPARE}.")
    if isinstance(item, np.ndarray):
        item = torch.from_numpy(np.ascontiguousarray(item))
    if not isinstance(item, Tensor):
        raise InputError(f"a capture needs pixels, got {type(item).__name__}; pass tensors, or what {PREPARE}.")
    if not item.is_floating_point():
        raise InputError(
            f"pixels of type {str(item.dtype).removeprefix('torch.')} are not normalised: divide by 255, then subtract "
            f"the mean and divide by the standard deviation that the model was trained with; {PREPARE}."
        )
    if item.ndim < 3:
        raise InputError(f"pixels need [image, channel, row, col], got {tuple(item.shape)}.")
    item = item[None] if item.ndim == 3 else item
    if item.shape[-1] in (1, 3, 4) and item.shape[1] not in (1, 3, 4) and item.ndim == 4:
        raise InputError(f"pixels {tuple(item.shape)} have their channels last; pass pixels.permute(0, 3, 1, 2).")
    return item


def _is_picture(item: Any) -> bool:
    return type(item).__module__.startswith("PIL.")


def _are_labels(item: Any) -> bool:
    return isinstance(item, Tensor | np.ndarray) and item.ndim == 1
