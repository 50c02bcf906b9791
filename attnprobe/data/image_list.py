"""Which images does a text file name? One path per line, and, if wanted, a tab and a class."""

import os
from collections import Counter
from pathlib import Path

from attnprobe.core.errors import InputError
from attnprobe.core.images import InputSpec
from attnprobe.data.decode import BadImages, DecodedImages
from attnprobe.data.device_resident import RESIDENT_BYTES, DeviceResident
from attnprobe.data.image_files import Listing, from_listing, readable_id

MAX_LABEL = 1_000_000


def number_classes(written: list[str], where: Path) -> tuple[list[int], tuple[str, ...]]:
    """Labels as written if all are whole numbers (-1: unknown), else the places of their names in sorted order.

    Raises:
        InputError: a number out of range.
    """
    if not all(word.isdecimal() or word == "-1" for word in written):
        class_names = tuple(sorted(set(written)))
        place = {name: k for k, name in enumerate(class_names)}
        return [place[word] for word in written], class_names
    labels = [int(word) for word in written]
    if max(labels) >= MAX_LABEL:
        raise InputError(f"{where}: label {max(labels)} is out of range; expected less than {MAX_LABEL}.")
    return labels, tuple(str(k) for k in range(max(labels) + 1))


def list_lines(where: Path) -> Listing:
    """The images of a list; relative paths start at the folder of the list.

    Raises:
        InputError: not a text file, empty, a line without a label among labelled ones, or an image twice.
    """
    try:
        text = where.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read the list {str(where)!r}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(
            f"{str(where)!r} is not a text file in UTF-8; expected one path of an image per line."
        ) from error
    lines = [line.rstrip("\r").split("\t") for line in text.split("\n") if line.strip()]  # names may hold U+2028
    if not lines:
        raise InputError(f"no image found in {where}: the list is empty. Expected one path per line.")
    labelled = len(lines[0]) > 1
    for line in lines:
        if len(line) != 1 + labelled or not all(line):
            expected = (
                "a path, a tab and a label, like the first line" if labelled else "a path alone, like the first line"
            )
            raise InputError(f"{where}: expected {expected}, got {chr(9).join(line)!r}.")
    folder = where.parent
    paths = [folder / line[0] for line in lines]
    path, times = Counter(paths).most_common(1)[0]
    if times > 1:
        raise InputError(f"{where} names {str(path)!r} {times} times; expected every image once.")
    inside = [path.relative_to(folder) if path.is_relative_to(folder) else path for path in paths]
    files, ids = [str(path) for path in paths], [readable_id(path.as_posix()) for path in inside]
    labels, class_names = (
        number_classes([line[1].strip() for line in lines], where) if labelled else ([-1] * len(files), ())
    )
    return Listing(files, ids, labels, class_names)


def image_list(
    name: str,
    split: str = "val",
    *,
    spec: InputSpec,
    limit: int | None = None,
    bad_images: BadImages = "refuse",
    workers: int = 0,
    resident_bytes: int = RESIDENT_BYTES,
) -> DecodedImages | DeviceResident:
    """The images a text file names, with timm's evaluation transform.

    Raises:
        InputError: see `list_lines` and `from_listing`; or a split other than val, which a list does not have.
    """
    where = Path(os.path.expanduser(name))
    if split not in ("val", "validation", "test"):
        raise InputError(
            f"the list {where} has no split {split!r}; ask for val, or arrange a folder as train/ and val/."
        )
    listing = list_lines(where)
    return from_listing(
        where.stem,
        listing,
        spec=spec,
        limit=limit,
        bad_images=bad_images,
        workers=workers,
        resident_bytes=resident_bytes,
    )
