"""Images that are too many to keep: decoded as they are asked for, by other processes."""

import copy
import itertools
import re
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from attnprobe.core.devices import on_device
from attnprobe.core.errors import InputError, WorkError, option
from attnprobe.core.images import ImageBatch, Order, position_batches
from attnprobe.data.order import ListedImages
from attnprobe.data.pillow import pillow_quiet, remark_on, why_unreadable
from attnprobe.data.rgb import as_rgb

PATIENCE = 600.0
"""Seconds after which a batch that does not come is an error: a worker may lose one without a word to anybody."""

BadImages = Literal["refuse", "skip"]

Reader = Callable[[int], tuple[Image.Image, int]]
"""From a position to an opened image and its label, -1 where unknown; must pickle, for worker processes."""


Transform = Callable[..., Any]
"""From an image to [3, row, col], uint8; a training transform also takes the position and the numbers that decide what
is done to the image, and may return more tensors beside the pixels. Must pickle."""


class Decoder(Dataset):
    """(place, position) -> (position, label, pixels and more or None, why there are none, or a remark on them).

    Lives in the workers. In training, `transform` is called with (*key, place) as the numbers to draw from.
    """

    def __init__(
        self, read: Reader, transform: Transform, key: tuple[int, ...] | None = None, remarks: bool = False
    ) -> None:
        self.read, self.transform, self.key, self.remarks = read, transform, key, remarks

    def __getitem__(self, request: tuple[int, int]) -> tuple[int, int, tuple[Tensor, ...] | None, str]:
        place, position = request
        numbers = () if self.key is None else (position, (*self.key, place))
        try:
            with pillow_quiet():
                image, label = self.read(position)
                with image:
                    said = remark_on(image) if self.remarks else ""
                    made = self.transform(as_rgb(image), *numbers)
            return position, label, made if isinstance(made, tuple) else (torch.as_tensor(made),), said
        except WorkError:  # a network that fails is no bad image, which might be skipped
            raise
        except Exception as error:
            return position, -1, None, why_unreadable(error)


Said = list[tuple[int, str]]
"""Positions of images, and what there is to say of each."""


def skipping() -> str:
    """Advice on bad images, with the option as the reader of a message gives it."""
    how = option("bad-images", "skip (of train: --set bad_images=skip)", python="bad_images='skip'")
    return f"skip such images with {how}"


def gather(samples: list) -> tuple[list[int], list[int], tuple[Tensor, ...], Said, Said]:
    """One batch in the worker: positions, labels and tensors of the good images, the bad ones with reasons, remarks.

    Whole batches cross to the main process, not one tensor per image, each of which would hold a file descriptor open.
    They move into shared memory here: where it is full, or no file can be opened, this process dies or reports it. In
    the thread that sends them the error would only be printed, and the main process would wait forever.
    """
    good = [sample for sample in samples if sample[2] is not None]
    bad = [(position, why) for position, _label, made, why in samples if made is None]
    remarks = [(position, remark) for position, _label, made, remark in samples if made is not None and remark]
    tensors = tuple(map(torch.stack, zip(*(sample[2] for sample in good), strict=True)))
    if get_worker_info() is not None:
        for tensor in tensors:
            tensor.share_memory_()
    return [sample[0] for sample in good], [sample[1] for sample in good], tensors, bad, remarks


@dataclass(eq=False, repr=False, kw_only=True)
class DecodedImages(ListedImages):
    """An `ImageSource` that opens image `ids[k]` by `read(k)` when its turn comes.

    At most 2 batches per worker wait in memory, whatever the number of images. An image that cannot be decoded
    is dropped from its batch and added to `bad` (bad_images="skip"), or ends the iteration with an `InputError`.

    Attributes:
        labels: one per image, -1 where unknown; none if they are known only when an image is opened.
        remarks: warn of the first image of each kind of which the model will not see all.
    """

    read: Reader
    labels: Sequence[int] = ()
    bad_images: BadImages = "refuse"
    workers: int = 0
    remarks: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.decoder, self.first = Decoder(self.read, self.spec.transform(), remarks=self.remarks), 0
        self.keeps_empty = False
        self.remarked: set[str] = set()

    def augmented(self, transform: Transform, key: tuple[int, ...], first: int = 0) -> "DecodedImages":
        """The same images through a training transform, called as `transform(image, position, (*key, place))`.

        `place` is an image's place in the order it is asked for, counted from `first`, so that one that comes twice
        looks different, and an order can be resumed in its middle. A batch without a readable image comes as one of no
        image: steps of training keep their numbers, and of several processes none waits for one that left a step out.
        """
        other = copy.copy(self)
        other.keeps_empty = True
        other.first = first
        other.decoder = Decoder(self.decoder.read, transform, key)
        return other

    def batches(
        self, batch_size: int, *, device: torch.device | str = "cpu", order: Order | None = None
    ) -> Iterator[ImageBatch]:
        """Yield the images at positions `order` (all, if None) in batches on `device`.

        Worker processes start once, no more than there are batches, and read ahead across runs of the order.

        Raises:
            InputError: an image cannot be decoded and bad_images is "refuse".
            WorkError: a worker process died.
        """
        device = torch.device(device)
        n_images = None if isinstance(order, Iterator) else len(self if order is None else order)
        workers = self.workers if n_images is None else min(self.workers, -(-n_images // batch_size))
        loader = DataLoader(
            self.decoder,
            batch_sampler=requests(position_batches(len(self), batch_size, order), self.first),
            num_workers=workers,
            timeout=PATIENCE if workers else 0,
            collate_fn=gather,
            pin_memory=device.type == "cuda",
            worker_init_fn=_as_started_anew,
            generator=torch.Generator(),  # its own, or starting workers would advance the global one
        )
        for positions, labels, tensors, bad, remarks in guard_workers(loader):
            for position, why in bad:
                self.drop(position, why)
            for position, remark in remarks:
                self.note(position, remark)
            if positions or self.keeps_empty:
                tensors = tensors or (torch.empty(0, 3, *self.spec.size, dtype=torch.uint8),)
                pixels, *more = (tensor.to(device, non_blocking=True) for tensor in tensors)
                shown = self.spec.normalise(pixels.float() / 255)
                ids = tuple(self.ids[position] for position in positions)
                (classes,) = on_device(device, torch.tensor(labels, dtype=torch.long))
                yield ImageBatch(shown, classes, ids, tuple(more))

    def drop(self, position: int, why: str) -> None:
        """Record an image that turned out to be unreadable, or refuse it."""
        name = self.ids[position]
        if self.bad_images == "refuse":
            raise InputError(f"image {name!r} of {self.name} cannot be read: {why}. Repair it, or {skipping()}.")
        if name not in self.bad:
            self.bad.append(name)
            warnings.warn(f"image {name!r} of {self.name} cannot be read and is skipped: {why}.", stacklevel=3)

    def note(self, position: int, remark: str) -> None:
        """Warn of the first image of a kind."""
        if remark not in self.remarked:
            self.remarked.add(remark)
            warnings.warn(f"images of {self.name}, the first {self.ids[position]!r}, {remark}.", stacklevel=3)


def _as_started_anew(_worker: int) -> None:
    """A worker ends when it is told to; the parent's handler, which came with the fork, would print a traceback."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def requests(batches: Iterator[list[int]], first: int) -> Iterator[list[tuple[int, int]]]:
    """Batches of positions -> batches of (place, position), places counted from `first`; made as they are asked for."""
    places = itertools.count(first)
    for positions in batches:
        yield [(next(places), position) for position in positions]


def guard_workers(loader: DataLoader) -> Iterator[tuple]:
    """The batches of a loader; a dead worker is a `WorkError` rather than a traceback of its internals."""
    try:
        yield from loader
    except WorkError as error:  # from another process it comes with its traceback, of which the last line is the error
        last = str(error).strip().splitlines()[-1]
        raise WorkError(last.removeprefix(f"{WorkError.__module__}.{WorkError.__name__}: ")) from None
    except (RuntimeError, ConnectionError, EOFError) as error:
        if isinstance(error, RuntimeError) and not re.search("DataLoader|with the workers", str(error)):
            raise
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise WorkError(
            f"a process that decodes images failed ({reason}). Use fewer workers, or smaller batches: memory, shared "
            "memory (/dev/shm) or open files may be short."
        ) from error
