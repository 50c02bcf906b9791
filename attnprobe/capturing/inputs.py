"""Images of a capture in any usual form, as a source of batches: tensors, arrays, lists, data sets, data loaders.

Images of a data set are read when they are needed, so that memory does not grow with their number.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from os import PathLike
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from attnprobe.core.errors import InputError
from attnprobe.core.images import ImageBatch, Order, position_batches, runs_of

PREPARE = "ap.load_images(..., spec=ap.input_spec(model)) prepares images for a model"

PIXELS = ("pixel_values", "image", "images", "pixels")
LABELS = ("labels", "label", "targets", "target")
"""Names of pixels and labels in a dictionary, the first of which counts."""

Labelled = tuple[Tensor, Tensor]
"""Pixels [image, channel, ..., row, col] of a float type, and the class of each image, -1 where unknown."""


def as_images(images: Any) -> Any:
    """An object with `batches` as it is; anything else as `Pixels`, `Samples` or `Stream`, which have `batches`, too.

    Taken are tensors, NumPy arrays, one image without the first axis, lists and generators of images or batches, data
    sets and loaders whose items are pixels or begin with pixels, each of these as (pixels, labels), too, and
    dictionaries with `pixel_values` and labels.

    Raises:
        InputError: bytes, paths, pictures, and whatever holds no pixels; the message says what to pass instead.
    """
    if hasattr(images, "batches"):
        return images
    if isinstance(images, str | PathLike):
        raise InputError(f"{images!s:.80} is a path; {PREPARE}: pass what it returns.")
    if isinstance(images, Tensor | np.ndarray | Mapping) or _is_picture(images) or _is_labelled(images):
        return Pixels(*_batch(images))
    if isinstance(images, DataLoader):
        return _of_loader(images)
    has_positions = hasattr(images, "__getitem__") and hasattr(images, "__len__")
    if isinstance(images, IterableDataset) or (isinstance(images, list | tuple) and _is_batch(images)):
        return Stream(images)
    if has_positions:
        return Samples(images, range(len(images)))
    if isinstance(images, Iterable):
        return Stream(images)
    raise InputError(f"a capture needs images, got {type(images).__name__}; pass pixels, or what {PREPARE}.")


def _of_loader(loader: DataLoader[Any]) -> "Samples | Stream":
    """The images of a loader in its own order, which is drawn once."""
    if isinstance(loader.dataset, IterableDataset) or loader.batch_sampler is None:
        return Stream(loader)
    positions = [int(i) for batch in loader.batch_sampler for i in batch]
    collate = loader.collate_fn
    return Samples(loader.dataset, positions, lambda items: _batch(collate(items)), loader.num_workers)


def _joined(items: Sequence[Any]) -> Labelled:
    """Pixels and labels of single images, as a batch."""
    read = [_batch(item, is_one=True) for item in items]
    _check_one_shape(*(pixels for pixels, _ in read))
    return torch.cat([pixels for pixels, _ in read]), torch.cat([labels for _, labels in read])


def _check_one_shape(*parts: Tensor) -> None:
    shapes = {tuple(part.shape[1:]) for part in parts}
    if len(shapes) > 1:
        raise InputError(f"the images have several shapes, {sorted(shapes)[:3]}; resize them to one, as {PREPARE}.")


@dataclass(frozen=True)
class Pixels:
    """Images in memory, of one label each; an image's id is its position."""

    pixels: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.pixels)

    def batches(
        self, batch_size: int, *, device: torch.device | str = "cpu", order: Order | None = None
    ) -> Iterator[ImageBatch]:
        """As `ImageSource.batches`."""
        for part in position_batches(len(self), batch_size, order):
            yield ImageBatch(self.pixels[part].to(device), self.labels[part], tuple(map(str, part)))


@dataclass(frozen=True)
class Samples:
    """Images of a data set, read when they are needed; an image's id is its position in the data set.

    Attributes:
        items: has an image at each position.
        positions: those that are read, in this order.
        collate: from some items to a batch.
        workers: processes that read.
    """

    items: Any
    positions: Sequence[int]
    collate: Callable[[list[Any]], Labelled] = _joined
    workers: int = 0

    def __len__(self) -> int:
        return len(self.positions)

    def batches(
        self, batch_size: int, *, device: torch.device | str = "cpu", order: Order | None = None
    ) -> Iterator[ImageBatch]:
        """As `ImageSource.batches`."""
        for run in runs_of(len(self), order):
            parts = [[self.positions[i] for i in part] for part in position_batches(len(self), batch_size, run)]
            loader = DataLoader(self.items, batch_sampler=parts, collate_fn=self.collate, num_workers=self.workers)
            for part, (pixels, labels) in zip(parts, loader, strict=True):
                if len(pixels) != len(part):
                    raise InputError(f"{len(part)} items of the data set gave {len(pixels)} images; pass one an item.")
                yield ImageBatch(pixels.to(device), labels, tuple(map(str, part)))


@dataclass
class Stream:
    """Images or batches that come one after the other, of unknown number; an image's id is its number.

    Attributes:
        items: read again for each pass over the images; a generator can be read once.
    """

    items: Iterable[Any]
    _begun: list[Any] = field(default_factory=list)
    _is_read: bool = False

    def batches(
        self, batch_size: int, *, device: torch.device | str = "cpu", order: Order | None = None
    ) -> Iterator[ImageBatch]:
        """As `ImageSource.batches`; of an `order`, the first few images alone.

        Raises:
            InputError: another order, images of several shapes, or a generator that was read already.
        """
        only = len(order) if isinstance(order, range) and order == range(len(order)) else None
        if order is not None and only is None:
            raise InputError("a stream of images has no positions; pass a list, a data set or a DataLoader of one.")
        number, pixels, labels = 0, torch.empty(0), torch.empty(0, dtype=torch.long)
        for more, their_labels in map(_batch, self._items(only is not None)):
            if len(pixels):
                _check_one_shape(pixels, more)
                more, their_labels = torch.cat((pixels, more)), torch.cat((labels, their_labels))
            pixels, labels = more, their_labels
            while len(pixels) >= batch_size:
                yield _numbered(pixels[:batch_size], labels[:batch_size], number, device)
                number, pixels, labels = number + batch_size, pixels[batch_size:], labels[batch_size:]
                if only is not None and number >= only:
                    return
        if len(pixels):
            yield _numbered(pixels, labels, number, device)

    def _items(self, only_first: bool) -> Iterator[Any]:
        """The items from the first one on; of a generator, those that were looked at come again."""
        if not isinstance(self.items, Iterator):
            yield from self.items
            return
        if self._is_read:
            raise InputError("the generator of images was read already; pass a list or a DataLoader to read it again.")
        if not only_first:
            self._is_read = True
            yield from chain(self._begun, self.items)
            return
        yield from self._begun
        for item in self.items:
            self._begun.append(item)
            yield item


def _numbered(pixels: Tensor, labels: Tensor, first: int, device: torch.device | str) -> ImageBatch:
    return ImageBatch(pixels.to(device), labels, tuple(str(first + i) for i in range(len(pixels))))


def _batch(item: Any, is_one: bool = False) -> Labelled:
    """One item as pixels [image, channel, ..., row, col] and labels; `is_one`: of four axes, it is a clip."""
    item, labels = _fields(item)
    if _is_picture(item):
        raise InputError(f"pictures have no size and scale that a model wants; save them in a folder: {PREPARE}.")
    if isinstance(item, list | tuple) and item:
        pixels, own = _joined(item)
        return pixels, own if labels is None else _classes(labels, len(pixels))
    if isinstance(item, np.ndarray) and item.dtype.kind in "fiub":
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
    item = item[None] if item.ndim == 3 or (is_one and item.ndim == 4) else item
    if item.shape[-1] in (1, 3, 4) and item.shape[1] not in (1, 3, 4) and item.ndim == 4:
        raise InputError(f"pixels {tuple(item.shape)} have their channels last; pass pixels.permute(0, 3, 1, 2).")
    return item.detach(), _classes(labels, len(item))


def _fields(item: Any) -> tuple[Any, Any]:
    """Pixels, as they are, and labels, None if there are none."""
    if isinstance(item, Mapping):
        name, label = (next((name for name in names if name in item), None) for names in (PIXELS, LABELS))
        if name is None:
            raise InputError(f"a dictionary of images needs 'pixel_values', got {', '.join(map(str, item)):.80}.")
        return item[name], None if label is None else item[label]
    # A loader makes a list of the fields of its samples, others a list of images.
    if not isinstance(item, tuple | list) or not item:
        return item, None
    if isinstance(item, tuple) or _is_labelled(item) or _is_batch(item):
        return item[0], item[1] if len(item) > 1 else None
    return item, None


def _is_picture(item: Any) -> bool:
    return type(item).__module__.startswith("PIL.")


def _is_batch(item: Sequence[Any]) -> bool:
    """True if the first of these is a batch of pixels."""
    return len(item) > 0 and isinstance(item[0], Tensor | np.ndarray) and item[0].ndim >= 4


def _is_labelled(item: Any) -> bool:
    """True if these are pixels and as many labels: of several images, or of one."""
    if not (isinstance(item, list | tuple) and len(item) == 2):
        return False
    pixels, labels = item
    if isinstance(pixels, Tensor | np.ndarray) and pixels.ndim == 3:
        return isinstance(labels, int | float | np.number) or (isinstance(labels, Tensor) and labels.ndim == 0)
    if isinstance(labels, list | tuple):
        are_labels = all(isinstance(label, int | float | np.integer) for label in labels)
    else:
        are_labels = isinstance(labels, Tensor | np.ndarray) and labels.ndim in (1, 2)
    has_many = isinstance(pixels, list | tuple) or _is_batch(item)
    return are_labels and has_many and len(pixels) == len(labels)


def _classes(labels: Any, n: int) -> Tensor:
    """[image], integer class; -1 where `labels` are not one whole number an image."""
    unknown = torch.full((n,), -1)
    if not isinstance(labels, Tensor | np.ndarray | list | tuple | int | float | np.number):
        return unknown
    try:
        given = torch.as_tensor(labels).cpu()
    except (TypeError, ValueError, RuntimeError):  # names, boxes
        return unknown
    whole = not given.is_complex() and bool((given == given.round()).all()) if given.dtype != torch.bool else True
    return given.reshape(-1).long() if whole and given.ndim < 2 and given.numel() == n else unknown
