"""What if a data set can only be read from front to back? Then it is read so, and nothing else is promised."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch

from attnprobe.core.errors import InputError
from attnprobe.core.images import ImageBatch, InputSpec
from attnprobe.data.decode import BadImages, eval_transform


class StreamedImages:
    """An `ImageSource` over a stream of known length, read in this process.

    An id is the place in the stream. Readers of streams drop images they cannot decode; if fewer came than
    announced, that is said at the end (bad_images="skip") or is an `InputError`.
    """

    def __init__(
        self,
        name: str,
        spec: InputSpec,
        stream: Iterable[Any],
        *,
        class_names: Sequence[str] = (),
        limit: int | None = None,
        bad_images: BadImages = "refuse",
    ) -> None:
        announced = len(stream)  # type: ignore[arg-type]
        if not announced:
            raise InputError(f"{name} does not say how many images it has; its info file should.")
        self.name, self.spec, self.class_names = name, spec, tuple(class_names)
        self.bad: list[str] = []
        self.stream, self.bad_images = stream, bad_images
        self.n_images = min(announced, limit or announced)
        self.fingerprint = f"{name} of {announced} images={self.n_images}"

    def __len__(self) -> int:
        return self.n_images

    def batches(
        self, batch_size: int, *, device: torch.device | str = "cpu", order: Sequence[int] | None = None
    ) -> Iterator[ImageBatch]:
        """Yield all images in their own order.

        Raises:
            InputError: another order is asked for, an image cannot be read, or images are missing at the end.
        """
        if order is not None and list(order) != list(range(len(self))):
            raise InputError(f"{self.name} is a stream and has one order; use hfds/ or a folder of images to shuffle.")
        transform, n_read = eval_transform(self.spec), 0
        stream = islice(iter(self.stream), len(self))
        while chunk := list(islice(stream, batch_size)):
            shown = torch.stack([torch.as_tensor(transform(image.convert("RGB"))) for image, _label in chunk])
            labels = [-1 if label is None else int(label) for _image, label in chunk]
            ids = tuple(f"{self.name}/{n_read + k:07d}" for k in range(len(chunk)))
            n_read += len(chunk)
            shown = self.spec.normalise(shown.to(device).float() / 255)
            yield ImageBatch(shown, torch.tensor(labels, device=device), ids)
        if n_read < len(self):
            missing = f"{self.name} announced {len(self)} images, but {n_read} could be read"
            if self.bad_images == "refuse":
                raise InputError(f"{missing}. Repair it, or skip bad images.")
            warnings.warn(f"{missing}; the others are skipped.", stacklevel=2)
