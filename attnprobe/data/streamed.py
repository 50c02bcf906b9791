"""Data sets that can only be read from front to back: images that are not asked for are passed over."""

import warnings
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch

from attnprobe.core.devices import on_device
from attnprobe.core.errors import InputError
from attnprobe.core.images import ImageBatch, InputSpec, Order, position_batches, runs_of
from attnprobe.data.decode import BadImages
from attnprobe.data.order import ListedImages
from attnprobe.data.pillow import why_unreadable, without_ghostscript
from attnprobe.data.rgb import as_rgb


class StreamedImages(ListedImages):
    """An `ImageSource` over a stream of known length, read in this process; an id is the place in the stream.

    Readers of streams drop images they cannot decode. If fewer came than were announced, the missing ones at
    the end are added to `bad` (bad_images="skip") or are an `InputError`.
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
            raise InputError(f"{name} does not say how many images it has; expected a number in its info file.")
        ids = tuple(f"{name}/{place:07d}" for place in range(min(announced, limit or announced)))
        about = f"{name} of {announced} images={len(ids)}"
        super().__init__(name, spec, ids=ids, class_names=tuple(class_names), fingerprint=about)
        self.bad_images, self.transform = bad_images, spec.transform()
        self.stream, self.reading, self.place = stream, iter(()), len(self.ids)

    def batches(
        self, batch_size: int, *, device: torch.device | str = "cpu", order: Order | None = None
    ) -> Iterator[ImageBatch]:
        """Yield the images at positions `order`, which must ascend within a run; one further back starts anew.

        Raises:
            InputError: `order` does not ascend, or images are missing at the end and bad_images is "refuse".
        """
        ascending = map(self.ascending, runs_of(len(self), order))
        for positions in position_batches(len(self), batch_size, ascending):
            with without_ghostscript():
                samples = [(position, sample) for position in positions if (sample := self.at(position)) is not None]
                made = [self.decoded(position, image) for position, (image, _) in samples]
            if samples:
                given = torch.tensor([-1 if label is None else int(label) for _, (_, label) in samples])
                pixels, labels = on_device(torch.device(device), torch.stack(made), given)
                ids = tuple(self.ids[position] for position, _ in samples)
                yield ImageBatch(self.spec.normalise(pixels.float() / 255), labels, ids)

    def ascending(self, run: Sequence[int]) -> Sequence[int]:
        """The run itself, if it can be read from front to back."""
        if any(later <= earlier for earlier, later in pairwise(run)):
            raise InputError(
                f"{self.name} is a stream and cannot be shuffled; use hfds/, torch/ or a folder of images."
            )
        return run

    def decoded(self, position: int, image: Any) -> torch.Tensor:
        """[3, row, col], uint8, of a sample that its reader left to be decoded."""
        try:
            return torch.as_tensor(self.transform(as_rgb(image)))
        except Exception as error:
            why = why_unreadable(error)
            raise InputError(
                f"image {self.ids[position]!r} of {self.name} cannot be read: {why}. Remove it."
            ) from error

    def at(self, position: int) -> tuple[Any, Any] | None:
        """Image and label at a position, from the start again if it lies behind; None if the stream has ended."""
        if position < self.place:
            self.reading, self.place = iter(self.stream), 0
        for sample in self.reading:
            self.place += 1
            if self.place == position + 1:
                return sample
        short = f"{self.name} has only {self.place} readable images where {len(self)} were expected"
        if self.bad_images == "refuse":
            raise InputError(f"{short}. Repair it, limit the images to that number, or skip bad images.")
        if self.ids[position] not in self.bad:
            self.bad.append(self.ids[position])
            if len(self.bad) == 1:
                warnings.warn(f"{short}; the rest is skipped.", stacklevel=3)
        return None
