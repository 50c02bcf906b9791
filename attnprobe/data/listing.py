"""Image files in their final order, and text files that list them."""

import hashlib
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from attnprobe.core.errors import InputError
from attnprobe.data.pillow import EXTENSIONS, open_image

MAX_LABEL = 1_000_000
"""Bound on labels written as numbers; one class name is made for each."""


@dataclass(frozen=True, slots=True)
class Listing:
    """Image files in their final order.

    Attributes:
        files: paths that can be opened.
        ids: one per file, unique: relative paths in POSIX form.
        labels: one per file, -1 where unknown.
        class_names: in label order; empty if there are no classes.
        known: the fingerprint, where it is known already.
        unreadable: why an image cannot be decoded, by id; None where nobody has tried all.
    """

    files: list[str]
    ids: list[str]
    labels: list[int]
    class_names: tuple[str, ...] = ()
    known: str = ""
    unreadable: dict[str, str] | None = None

    def pick(self, positions: list[int]) -> "Listing":
        """The files at some positions, which ascend."""
        if len(positions) == len(self.ids):
            return self
        files, ids = [self.files[k] for k in positions], [self.ids[k] for k in positions]
        return Listing(files, ids, [self.labels[k] for k in positions], self.class_names, unreadable=self.unreadable)

    def read(self, position: int) -> tuple[Image.Image, int]:
        """Open one image, with its label."""
        return open_image(self.files[position]), self.labels[position]

    def fingerprint(self) -> str:
        """SHA-256 over the ids, sizes in bytes and labels; a file that is not there has size -1."""
        if self.known:
            return self.known
        digest = hashlib.sha256()
        for file, name, label in zip(self.files, self.ids, self.labels, strict=True):
            digest.update(f"{name}\0{_size(file)}\0{label}\n".encode())
        return f"files:sha256:{digest.hexdigest()}"


def _size(file: str) -> int:
    """Bytes of a file; -1 of a dangling link, which is met when it is decoded."""
    try:
        return os.stat(file).st_size
    except OSError:
        return -1


def readable_id(path: str) -> str:
    """A path as a string that can be stored as UTF-8; bytes of other encodings become \\xNN."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def number_classes(written: list[str], where: Path) -> tuple[list[int], tuple[str, ...]]:
    """Labels and class names: as written if all are whole numbers (-1: unknown), else numbered in sorted order.

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
    """The images a text file names, one path a line and optionally a tab and a class; relative to the file's folder.

    Raises:
        InputError: not a text file, empty, a line without a label among labelled ones, or an image twice.
    """
    try:
        text = where.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"cannot read the list {str(where)!r}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        if where.name.lower().endswith(EXTENSIONS):
            raise InputError(
                f"{str(where)!r} is an image; expected a folder of images, or a text file with the path of one image "
                "per line."
            ) from error
        raise InputError(
            f"{str(where)!r} is not a text file in UTF-8; expected the path of one image per line."
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
