"""Image files, of a folder or a text file, as an `ImageSource`."""

import math
import os
import warnings
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from attnprobe.core.errors import InputError
from attnprobe.core.images import InputSpec
from attnprobe.data.decode import BadImages, DecodedImages, skipping
from attnprobe.data.device_resident import RESIDENT_BYTES, DeviceResident, may_reside, shown_whole
from attnprobe.data.folder import list_folder, split_folder
from attnprobe.data.listing import Listing, list_lines
from attnprobe.data.order import balanced_subset
from attnprobe.data.pillow import check, decode_all, of_each, one_size, remark, some_unreadable
from attnprobe.data.shared_list import Shared, listed_once
from attnprobe.data.tiny_imagenet import is_tiny_imagenet, list_tiny_imagenet


@dataclass(frozen=True, slots=True)
class Reading:
    """Options of decoding.

    Attributes:
        bad_images: "refuse" the whole set if an image cannot be read, or "skip" such images.
        workers: processes that decode files.
        resident_bytes: a set of small images that fits is decoded once and kept on the device; 0 keeps none.
        scan: decode every file once before anything else, or meet what cannot be read when its turn comes.
        shared: the list of images is made by the first process that looks there, with what `scan` found, and left for
            others, which may ask for fewer of them.
    """

    bad_images: BadImages = "refuse"
    workers: int = 0
    resident_bytes: int = RESIDENT_BYTES
    scan: bool = True
    shared: Shared | None = None


READING = Reading()


def list_files(name: str, split: str) -> tuple[str, Listing]:
    """The name of one split and its files, of a folder or of a text file (any file, or a name that ends in .txt).

    Raises:
        InputError: no such file, folder or split, or one that may not be read; see also `list_lines`, `list_folder`
            and `list_tiny_imagenet`.
    """
    path = Path(os.path.expanduser(name))
    if os.path.isfile(path) or name.endswith(".txt"):
        if split not in ("val", "validation", "test"):
            raise InputError(
                f"the list {path} has no split {split!r}; ask for val, or arrange a folder as train/ and val/."
            )
        return path.stem, list_lines(path)
    if not os.path.isdir(path):
        raise InputError(f"no folder {name!r}. Expected a folder of images, or a text file with one path per line.")
    try:
        listing = (list_tiny_imagenet if is_tiny_imagenet(path) else list_folder)(path, split)
    except OSError as error:
        raise InputError(f"cannot list {error.filename}: {error.strerror}. Check its permissions.") from error
    there, _ = split_folder(path, split)
    return path.resolve().name + (f"/{split}" if there != path else ""), listing


def load_files(
    name: str, split: str = "val", *, spec: InputSpec, limit: int | None = None, reading: Reading = READING
) -> DecodedImages | DeviceResident:
    """The images of a folder or of a text file, with timm's evaluation transform.

    Every file is decoded once; the good ones are kept on the device if they may be, else decoded again when asked for.
    The subset of `limit` images is chosen before: a bad image leaves a gap and moves no other. Ids are paths relative
    to the folder, or to that of the text file. Without `reading.scan` no file is opened yet, and a bad image is among
    the ids.

    Raises:
        InputError: see `list_files`; or unreadable images and bad_images is "refuse", or no readable image.
    """

    def listed() -> tuple[str, Listing]:
        source, listing = list_files(name, split)
        listing = listing.pick(balanced_subset(listing.ids, listing.labels, limit))
        tried = reading.scan and reading.shared is not None and _resident_size(listing, spec, reading) is None
        return source, replace(listing, unreadable=_unreadable(listing, reading.workers)) if tried else listing

    source, listing = listed() if reading.shared is None else listed_once(reading.shared, listed)
    listing = listing.pick(balanced_subset(listing.ids, listing.labels, limit))  # a smaller one lies in a larger one
    if not reading.scan:
        return _unopened(source, listing, split, spec, reading)
    if listing.unreadable is None and (size := _resident_size(listing, spec, reading)):
        pixels, reasons = decode_all(listing.files, size, reading.workers)
    else:
        known = _unreadable(listing, reading.workers) if listing.unreadable is None else listing.unreadable
        pixels, reasons = None, [known.get(id_, "") for id_ in listing.ids]
    bad = [(id_, why) for id_, why in zip(listing.ids, reasons, strict=True) if why]
    good = [k for k, why in enumerate(reasons) if not why]
    if bad:
        sentence = f"{source}: {some_unreadable(bad, len(reasons))}"
        if reading.bad_images == "refuse" or not good:
            raise InputError(f"{sentence}. Repair or remove them" + (f", or {skipping()}." if good else "."))
        warnings.warn(f"{sentence}; they are skipped.", stacklevel=3)
        pixels = None if pixels is None else pixels[good]
    listing = listing.pick(good)
    for sentence, number in Counter(filter(None, of_each(remark, listing.files, reading.workers))).items():
        warnings.warn(f"{source}: {number} of {len(good)} images {sentence}.", stacklevel=3)
    described = {
        "ids": listing.ids,
        "class_names": listing.class_names,
        "fingerprint": listing.fingerprint(),
        "bad": [id_ for id_, _why in bad],
    }
    if pixels is not None:
        spec = shown_whole(spec, split)
        return DeviceResident(source, spec, pixels=pixels, labels=torch.tensor(listing.labels), **described)
    options = {"bad_images": reading.bad_images, "workers": reading.workers}
    return DecodedImages(source, spec, read=listing.read, labels=listing.labels, **options, **described)


def _resident_size(listing: Listing, spec: InputSpec, reading: Reading) -> tuple[int, int] | None:
    """Rows and columns of all images, if they may be kept on the device."""
    fitting = math.isqrt(reading.resident_bytes // (3 * len(listing.files)))
    largest = min(spec.size[0], fitting)  # to look no further than this
    size = one_size(listing.files, at_most=(largest, largest))
    return size if size and may_reside((len(listing.files), 3, *size), spec, reading.resident_bytes) else None


def _unreadable(listing: Listing, workers: int) -> dict[str, str]:
    """Why an image cannot be decoded, by id; all are tried."""
    reasons = of_each(check, listing.files, workers)
    return {id_: why for id_, why in zip(listing.ids, reasons, strict=True) if why}


def _unopened(source: str, listing: Listing, split: str, spec: InputSpec, reading: Reading) -> DecodedImages:
    """Images of which none was opened, but the first one where its size decides how a training split is shown."""
    if split == "train" and (size := one_size(listing.files[:1], at_most=spec.size)):
        spec = shown_whole(spec, split) if may_reside((1, 3, *size), spec, reading.resident_bytes) else spec
    return DecodedImages(
        source,
        spec,
        read=listing.read,
        labels=listing.labels,
        bad_images=reading.bad_images,
        workers=reading.workers,
        remarks=True,
        ids=tuple(listing.ids),
        class_names=listing.class_names,
        fingerprint=listing.fingerprint(),
    )
