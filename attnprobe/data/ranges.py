"""Images that are bytes of a larger file, or objects of an object store: read one by one when their turn comes."""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from attnprobe.core.errors import AttnprobeError, InputError, WorkError
from attnprobe.core.images import InputSpec
from attnprobe.data.decode import DecodedImages
from attnprobe.data.image_files import READING, Reading
from attnprobe.data.order import balanced_subset
from attnprobe.data.pillow import open_image
from attnprobe.io import fs
from attnprobe.io.remote import RemotePath

MOST_BYTES = 256 << 20
"""Maximum size of one encoded image, which is held in memory."""


@dataclass(frozen=True, slots=True)
class Ranges:
    """The place of the bytes of each image, in the final order.

    Attributes:
        files, starts, sizes: the file or object of each image, where it begins in it, and its bytes.
        ids: one per image, unique.
        labels: one per image, -1 where unknown.
        class_names: in label order; empty if there are no classes.
    """

    files: list[Path]
    starts: list[int]
    sizes: list[int]
    ids: list[str]
    labels: list[int]
    class_names: tuple[str, ...] = ()

    def pick(self, positions: list[int]) -> "Ranges":
        """The images at some positions."""
        columns = (self.files, self.starts, self.sizes, self.ids, self.labels)
        return Ranges(*([column[k] for k in positions] for column in columns), self.class_names)  # type: ignore[arg-type]

    def read(self, position: int) -> tuple[Image.Image, int]:
        """Open one image, with its label.

        Raises:
            WorkError: the network failed, or the store refused; the image may be as good as any.
        """
        start, size = self.starts[position], self.sizes[position]
        if not 0 < size <= MOST_BYTES:
            raise InputError(f"of {size} bytes, where 1 to {MOST_BYTES} are read" if size else "empty file")
        data = _bytes_of(self.files[position], start, size)
        if len(data) != size:
            raise InputError(f"{len(data)} of {size} bytes are there")
        return open_image(io.BytesIO(data)), self.labels[position]

    def fingerprint(self) -> str:
        """SHA-256 over the ids, sizes in bytes and labels; that of the same files on a disk."""
        digest = hashlib.sha256()
        for name, size, label in zip(self.ids, self.sizes, self.labels, strict=True):
            digest.update(f"{name}\0{size}\0{label}\n".encode())
        return f"files:sha256:{digest.hexdigest()}"


def _bytes_of(file: Path, start: int, size: int) -> bytes:
    if not isinstance(file, RemotePath):
        with fs.open_regular(file, 1 << 62) as opened:
            opened.seek(start)
            return opened.read(size)
    try:
        return file.read_range(start, start + size)
    except AttnprobeError as error:  # not the image's fault, so never a reason to skip it
        raise WorkError(str(error)) from error


def load_ranges(
    source: str, ranges: Ranges, spec: InputSpec, limit: int | None = None, reading: Reading = READING
) -> DecodedImages:
    """An `ImageSource` of these images; those that cannot be decoded are met when their turn comes."""
    ranges = ranges.pick(balanced_subset(ranges.ids, ranges.labels, limit))
    described = {"ids": ranges.ids, "class_names": ranges.class_names, "fingerprint": ranges.fingerprint()}
    options = {"bad_images": reading.bad_images, "workers": reading.workers}
    return DecodedImages(source, spec, read=ranges.read, labels=ranges.labels, **options, **described)
