"""Images on their way into a model: how it wants them, a batch of them, and where batches come from."""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from attnprobe.core.errors import InputError, ShapeError

Order = Sequence[int] | Iterator[Sequence[int]]
"""Positions of images; or an iterator over runs of them, of which no batch spans two. It is asked for the next run when
the last one has been read, or earlier by a source that reads ahead."""


LUMA = (0.299, 0.587, 0.114)
"""Shares of red, green and blue in grey (ITU-R BT.601, as Pillow's mode "L")."""


@dataclass(frozen=True, slots=True)
class InputSpec:
    """The size, normalisation and resizing that a model expects of its input.

    Attributes:
        size: rows and columns of the input.
        mean, std: per channel, subtracted from and divided into pixels that lie in [0, 1].
        interpolation: how images of another size are resized.
        crop_pct: share of the resized image that the centre crop keeps.
        crop_mode: "center" keeps the aspect ratio of an image, "squash" does not.
        channels: their order, "rgb" or "bgr"; a single entry of `mean` stands for grey.
    """

    size: tuple[int, int] = (224, 224)
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    interpolation: str = "bicubic"
    crop_pct: float = 1.0
    crop_mode: Literal["center", "squash"] = "center"
    channels: Literal["rgb", "bgr"] = "rgb"

    def __post_init__(self) -> None:
        numbers, n = (*self.mean, *self.std, self.crop_pct), len(self.mean)
        if n < 1 or len(self.std) != n or not all(map(math.isfinite, numbers)) or min(*self.std, self.crop_pct) <= 0:
            raise InputError(
                f"pixels need a mean and a positive std per channel and a positive crop_pct, got {self.mean!r:.60}, "
                f"{self.std!r:.60}, {self.crop_pct}."
            )
        if min(self.size) < 1:
            raise InputError(f"images need rows and columns, got {self.size}.")

    def transform(self) -> Any:
        """timm's evaluation transform up to bytes: a picture -> [3, row, col], uint8.

        What remains, a division by 255 and `normalise`, is done on the device: a quarter of the bytes to move.
        """
        from timm.data import create_transform  # late: it takes seconds, and sets on the device do without

        resize = {"interpolation": self.interpolation, "crop_pct": self.crop_pct, "crop_mode": self.crop_mode}
        return create_transform((3, *self.size), use_prefetcher=True, **resize)

    def grey(self) -> "InputSpec":
        """The same of one channel, whose mean and std are those of three as grey weighs them."""
        mean, std = (sum(x * y for x, y in zip(values, LUMA, strict=True)) for values in (self.mean, self.std))
        return replace(self, mean=(round(mean, 6),), std=(round(std, 6),))

    def normalise(self, pixels: Tensor) -> Tensor:
        """[image, 3, row, col], red, green and blue in [0, 1] -> the model's input."""
        if len(self.mean) == 1:
            pixels = (pixels * _per_channel(LUMA, pixels)).sum(1, keepdim=True)
        pixels = pixels.flip(1) if self.channels == "bgr" else pixels
        return (pixels - _per_channel(self.mean, pixels)) / _per_channel(self.std, pixels)

    def restore(self, pixels: Tensor) -> Tensor:
        """The model's input -> [image, 3, row, col] in [0, 1], for display."""
        shown = (pixels * _per_channel(self.std, pixels) + _per_channel(self.mean, pixels)).clamp(0, 1)
        shown = shown.flip(1) if self.channels == "bgr" else shown
        return shown.expand(-1, 3, -1, -1) if len(self.mean) == 1 else shown


def _per_channel(values: Sequence[float], like: Tensor) -> Tensor:
    """[1, channel, 1, 1], filled on the device: a copy from the host would wait for all work queued on a GPU."""
    return torch.stack([like.new_full((), value) for value in values]).view(1, -1, 1, 1)


@dataclass(frozen=True, slots=True)
class ImageBatch:
    """Pixels of a few images, with their labels and ids.

    Attributes:
        pixels: [image, 3, row, col], normalised as the source's `InputSpec` says.
        labels: [image], integer class, -1 where unknown.
        ids: stable strings: dataset index or relative path.
        more: [image, ...] each, what a training transform made beside the pixels.
    """

    pixels: Tensor
    labels: Tensor
    ids: tuple[str, ...]
    more: tuple[Tensor, ...] = ()

    def __post_init__(self) -> None:
        shape = tuple(self.pixels.shape)
        if len(shape) < 4 or shape[0] != len(self.ids) or tuple(self.labels.shape) != (shape[0],):
            raise ShapeError(
                "an ImageBatch needs pixels [image, channel, row, col], labels [image] and one id per image, got "
                f"pixels {shape}, labels {tuple(self.labels.shape)}, {len(self.ids)} ids."
            )


def as_seen(pixels: Tensor, spec: InputSpec | None) -> Tensor:
    """The images of a batch as `pixel_hashes` compares them: on the CPU, 8 bits a channel.

    Before `spec` normalises them, so that two models of different means see the same images; in 8 bits, so that
    the last bit of a resize does not matter. Without a spec, the numbers themselves.
    """
    shown = pixels.float() if spec is None else (spec.restore(pixels.float()) * 255).round().to(torch.uint8)
    return shown.cpu()


def pixel_hashes(seen: Tensor) -> Tensor:
    """[image], int64: the first bytes of the SHA-256 of each image; never 0, which stands for unknown.

    Hashes the model's input, not a file's bytes: two files that give the same input are one image to the model, and a
    data set need not have files.
    """
    digests = (hashlib.sha256(image.tobytes()).digest()[:8] for image in seen.contiguous().numpy())
    return torch.tensor([int.from_bytes(digest, "little", signed=True) or 1 for digest in digests])


def position_batches(n_images: int, batch_size: int, order: Order | None) -> Iterator[list[int]]:
    """Cut `order` (every position, ascending, if None) into lists of `batch_size`; the last of a run may be shorter."""
    for positions in runs_of(n_images, order):
        for start in range(0, len(positions), batch_size):
            yield [int(position) for position in positions[start : start + batch_size]]


def runs_of(n_images: int, order: Order | None) -> Iterator[Sequence[int]]:
    """The runs of an order: of a sequence itself."""
    if isinstance(order, Iterator):
        yield from order
    else:
        yield range(n_images) if order is None else order


@runtime_checkable
class ImageSource(Protocol):
    """Anything that yields `ImageBatch`es and knows how many images it has.

    Attributes:
        name: as reports show it, such as "digits/val".
        spec: how the pixels are prepared.
        class_names: one per class, in label order; empty if there are no classes.
        ids: one stable id per image, in order.
        fingerprint: tells two sets of images apart.
    """

    name: str
    spec: InputSpec
    class_names: tuple[str, ...]
    ids: tuple[str, ...]
    fingerprint: str

    def __len__(self) -> int: ...

    def batches(
        self, batch_size: int, *, device: torch.device | str = "cpu", order: Order | None = None
    ) -> Iterator[ImageBatch]:
        """Yield the images at positions `order` (all, in order, if None) in batches on `device`."""
        ...
