"""Small images, kept as bytes on the device that uses them, so that reading them again costs nothing."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from attnprobe.core.devices import numbered, on_device
from attnprobe.core.images import ImageBatch, InputSpec, Order, position_batches
from attnprobe.data.order import ListedImages
from attnprobe.data.resize import as_evaluated

RESIDENT_BYTES = 2 << 30
"""Largest set that is kept, unless asked otherwise; the training images of Tiny-ImageNet are 1.2 GB."""


def may_reside(shape: Sequence[int], spec: InputSpec, resident_bytes: int) -> bool:
    """True if images [image, channel, row, col] may be kept as bytes and resized on the device.

    They have to fit, and to be square and no larger than a square input: then nothing is lost where training crops
    after resizing, and evaluation sees timm's pixels.
    """
    n, channels, rows, cols = shape
    lossless = rows == cols <= spec.size[0] == spec.size[1] and spec.crop_pct <= 1
    return lossless and n * channels * rows * cols <= resident_bytes


@dataclass(eq=False, repr=False, kw_only=True)
class DeviceResident(ListedImages):
    """An `ImageSource` over one tensor of bytes, resized and normalised on the device batch by batch.

    Attributes:
        pixels: [image, channel, row, col], uint8, with one channel (repeated) or three.
        labels: [image], -1 where unknown.
        show: `show(pixels, spec)` makes [image, channel, *spec.size] in [0, 1] of some of them.
    """

    pixels: Tensor
    labels: Tensor
    show: Callable[[Tensor, InputSpec], Tensor] = as_evaluated

    def __post_init__(self) -> None:
        super().__post_init__()
        self.kept = {torch.device("cpu"): (self.pixels, self.labels.long())}

    def batches(
        self, batch_size: int, *, device: torch.device | str = "cpu", order: Order | None = None
    ) -> Iterator[ImageBatch]:
        """Yield the images at positions `order` (all, if None); the first call on a device copies them there."""
        device = numbered(device)
        if device not in self.kept:
            pixels, labels = self.kept[torch.device("cpu")]
            self.kept[device] = pixels.to(device), labels.to(device)
        pixels, labels = self.kept[device]
        for positions in position_batches(len(self), batch_size, order):
            (picked,) = on_device(device, torch.tensor(positions))
            shown = self.spec.normalise(self.show(pixels[picked], self.spec).expand(-1, 3, -1, -1))
            yield ImageBatch(shown, labels[picked], tuple(self.ids[position] for position in positions))


def shown_whole(spec: InputSpec, split: str) -> InputSpec:
    """`spec` for images kept on the device: training crops by itself, so a training split is shown to its borders."""
    return replace(spec, crop_pct=1.0) if split == "train" else spec
