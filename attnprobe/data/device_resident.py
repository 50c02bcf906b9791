"""How are small images kept so that reading them costs nothing? Once, as bytes, on the device that uses them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from attnprobe.core.images import ImageBatch, InputSpec
from attnprobe.data.order import position_batches
from attnprobe.data.resize import as_evaluated

RESIDENT_BYTES = 2 << 30
"""Largest set that is kept, unless asked otherwise; the training pictures of Tiny-ImageNet are 1.2 GB."""


def may_reside(shape: Sequence[int], spec: InputSpec, resident_bytes: int) -> bool:
    """Whether pictures [image, channel, row, col] may be kept as bytes and resized on the device.

    They have to fit, and to be square and no larger than a square input: then nothing is lost where training crops
    after resizing, and evaluation sees timm's pixels.
    """
    n, channels, rows, cols = shape
    lossless = rows == cols <= spec.size[0] == spec.size[1] and spec.crop_pct <= 1
    return lossless and n * channels * rows * cols <= resident_bytes


class DeviceResident:
    """An `ImageSource` over one tensor of bytes, resized and normalised on the device batch by batch.

    `pixels` is [image, channel, row, col], uint8, with one channel (repeated) or three; `labels` [image];
    `show(pixels, spec)` makes [image, channel, *spec.size] in [0, 1] of some of them.
    """

    def __init__(
        self,
        name: str,
        spec: InputSpec,
        *,
        pixels: Tensor,
        labels: Tensor,
        ids: Sequence[str],
        class_names: Sequence[str],
        fingerprint: str,
        bad: Sequence[str] = (),
        show: Callable[[Tensor, InputSpec], Tensor] = as_evaluated,
    ) -> None:
        self.name, self.spec, self.fingerprint = name, spec, fingerprint
        self.class_names = tuple(class_names)
        self.bad = list(bad)
        self.ids, self.show = tuple(ids), show
        self.kept = {torch.device("cpu"): (pixels, labels.long())}

    def __len__(self) -> int:
        return len(self.ids)

    def batches(
        self, batch_size: int, *, device: torch.device | str = "cpu", order: Sequence[int] | None = None
    ) -> Iterator[ImageBatch]:
        """Yield the images at positions `order` (all, if None); the first call on a device copies them there."""
        device = torch.device(device)
        if device not in self.kept:
            pixels, labels = self.kept[torch.device("cpu")]
            self.kept[device] = pixels.to(device), labels.to(device)
        pixels, labels = self.kept[device]
        for positions in position_batches(len(self), batch_size, order):
            picked = torch.tensor(positions, device=device)
            shown = self.spec.normalise(self.show(pixels[picked], self.spec).expand(-1, 3, -1, -1))
            yield ImageBatch(shown, labels[picked], tuple(self.ids[position] for position in positions))


def shown_whole(spec: InputSpec, split: str) -> InputSpec:
    """`spec` for images kept on the device: training crops by itself, so a training split is shown to its borders."""
    return replace(spec, crop_pct=1.0) if split == "train" else spec
