"""How does a list of image files become an `ImageSource`?"""

import hashlib
import math
import os
import warnings
from dataclasses import dataclass

import torch
from PIL import Image

from attnprobe.core.errors import InputError
from attnprobe.core.images import InputSpec
from attnprobe.data.decode import BadImages, DecodedImages
from attnprobe.data.device_resident import DeviceResident, may_reside, shown_whole
from attnprobe.data.order import balanced_subset
from attnprobe.data.pillow import decode_all, one_size, open_image, pre_scan, some_unreadable


@dataclass(frozen=True, slots=True)
class Listing:
    """Image files in their final order.

    Attributes:
        files: paths that can be opened.
        ids: one per file, unique: relative paths in POSIX form.
        labels: one per file, -1 where unknown.
        class_names: in label order; empty if there are no classes.
    """

    files: list[str]
    ids: list[str]
    labels: list[int]
    class_names: tuple[str, ...] = ()

    def pick(self, positions: list[int]) -> "Listing":
        """The files at some positions."""
        files, ids = [self.files[k] for k in positions], [self.ids[k] for k in positions]
        return Listing(files, ids, [self.labels[k] for k in positions], self.class_names)

    def read(self, position: int) -> tuple[Image.Image, int]:
        """Open one image, with its label."""
        return open_image(self.files[position]), self.labels[position]

    def fingerprint(self) -> str:
        """SHA-256 over the ids, sizes in bytes and labels."""
        digest = hashlib.sha256()
        for file, name, label in zip(self.files, self.ids, self.labels, strict=True):
            digest.update(f"{name}\0{os.stat(file).st_size}\0{label}\n".encode())
        return f"files:sha256:{digest.hexdigest()}"


def readable_id(path: str) -> str:
    """A path as a string that can be stored as UTF-8: bytes of other encodings appear as \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def from_listing(
    name: str,
    listing: Listing,
    *,
    spec: InputSpec,
    limit: int | None,
    bad_images: BadImages,
    workers: int,
    resident_bytes: int,
    split: str = "val",
) -> DecodedImages | DeviceResident:
    """Decode every file once, then hand out the good ones; they are kept if they may be, else decoded when asked for.

    The subset of `limit` images is chosen before: a bad image leaves a gap and moves no other.

    Raises:
        InputError: unreadable images and bad_images is "refuse", or no readable image.
    """
    listing = listing.pick(balanced_subset(listing.ids, listing.labels, limit))
    largest = min(spec.size[0], math.isqrt(resident_bytes // (3 * len(listing.files))))  # to look no further than this
    size = one_size(listing.files, at_most=(largest, largest))
    if size and may_reside((len(listing.files), 3, *size), spec, resident_bytes):
        pixels, reasons = decode_all(listing.files, size, workers)
    else:
        pixels, reasons = None, pre_scan(listing.files, workers)
    bad = [(name, why) for name, why in zip(listing.ids, reasons, strict=True) if why]
    good = [k for k, why in enumerate(reasons) if not why]
    if bad:
        sentence = f"{name}: {some_unreadable(bad, len(reasons))}"
        if bad_images == "refuse" or not good:
            raise InputError(f"{sentence}. Repair or remove them" + (", or skip bad images." if good else "."))
        warnings.warn(f"{sentence}; they are skipped.", stacklevel=4)
        pixels = None if pixels is None else pixels[good]
    listing = listing.pick(good)
    described = {
        "ids": listing.ids,
        "class_names": listing.class_names,
        "fingerprint": listing.fingerprint(),
        "bad": [name for name, _why in bad],
    }
    if pixels is not None:
        spec = shown_whole(spec, split)
        return DeviceResident(name, spec, pixels=pixels, labels=torch.tensor(listing.labels), **described)
    return DecodedImages(name, spec, read=listing.read, bad_images=bad_images, workers=workers, **described)
