"""How are small images kept so that reading them costs nothing? Once, as bytes, on the device that uses them."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from attnprobe.core.images import ImageBatch, InputSpec
from attnprobe.data.order import position_batches


def resize(pixels: Tensor, size: tuple[int, int], interpolation: str) -> Tensor:
    """[image, channel, row, col] in [0, 1] -> the same at `size`, the whole picture, on its own device.

    Bilinear if asked for, else bicubic, whose overshoot is cut off. Shrinking is antialiased.
    """
    rows, cols = pixels.shape[-2:]
    if (rows, cols) == tuple(size):
        return pixels
    mode = "bilinear" if interpolation == "bilinear" else "bicubic"
    shrinks = size[0] < rows or size[1] < cols
    return F.interpolate(pixels, size=tuple(size), mode=mode, align_corners=False, antialias=shrinks).clamp(0, 1)


class DeviceResident:
    """An `ImageSource` over one tensor of bytes, resized and normalised on the device batch by batch.

    `pixels` is [image, channel, row, col], uint8 from 0 to `white`, with one channel (repeated) or three;
    `labels` [image]. The whole picture is shown: `spec.crop_pct` has no effect.
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
        white: int = 255,
    ) -> None:
        self.name, self.spec, self.fingerprint = name, spec, fingerprint
        self.class_names = tuple(class_names)
        self.bad: list[str] = []
        self.ids, self.white = tuple(ids), white
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
            shown = resize(pixels[picked].float() / self.white, self.spec.size, self.spec.interpolation)
            shown = self.spec.normalise(shown.expand(-1, 3, -1, -1))
            yield ImageBatch(shown, labels[picked], tuple(self.ids[position] for position in positions))
