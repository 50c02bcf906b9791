"""The images of a folder and their classes.

    photos/train/cat/a.png, photos/val/cat/b.png     splits, each with a folder per class
    photos/cat/a.png                                 a folder per class
    photos/a.png                                     no classes: every label is -1
    tiny-imagenet-200/                               as it is unpacked; see tiny_imagenet.py

Classes are sorted by name, as in torchvision, and numbered over all splits together, so that a class missing
from one split shifts no label in it; but test/ adds none if there are other splits, since it often holds one folder of
images without classes, whose labels are then -1. Hidden files are ignored; other files without the ending of an image
that Pillow reads are left out with a warning.
"""

import os
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from attnprobe.core.errors import InputError
from attnprobe.data.listing import Listing, readable_id
from attnprobe.data.pillow import EXTENSIONS

SIDECARS = (".txt", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".md", ".db", ".ini")
"""Endings of files that lie beside images and hold none: labels, notes, a file manager's own."""

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "validation", "valid", "test"),
    "validation": ("validation", "val", "valid"),
    "test": ("test",),
}
"""Names of a split, and the folders that may hold it, best first."""

SPLIT_FOLDERS = {folder for folders in SPLITS.values() for folder in folders}


def subfolders(folder: Path) -> list[str]:
    """Names of the folders in a folder, hidden ones left out, sorted."""
    return sorted(name for name in os.listdir(folder) if not name.startswith(".") and (folder / name).is_dir())


def is_image(file: str) -> bool:
    """True if a file has the ending of an image that is read."""
    return file.lower().endswith(EXTENSIONS)


def files_under(folder: Path, seen: frozenset[tuple[int, int]] = frozenset()) -> list[str]:
    """Paths of all files in a folder and below, sorted. Each real folder is entered once, so link cycles end.

    A million files take seconds: what a name is comes with the listing of its folder, without a look at the file.
    """
    entered, found, waiting = set(seen), [], [folder.as_posix()]
    while waiting:
        here = waiting.pop()
        status = os.stat(here)
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        with os.scandir(here) as entries:
            inside = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
        folders = [entry.path for entry in inside if _is_dir(entry)]
        waiting += reversed(folders)
        for entry in inside:
            if not _is_dir(entry) and (is_image(entry.name) or _is_file(entry)):  # a dangling link is a bad image
                found.append(entry.path)
    return sorted(found)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_file()
    except OSError:
        return False


def endings_of(files: Sequence[str]) -> str:
    """Number of files of each ending, and the name of the first: "2 .heic, 1 .svg (first 'a.heic')"."""
    count = Counter(os.path.splitext(file)[1].lower() or "without ending" for file in files)
    listed = ", ".join(f"{number} {ending}" for ending, number in count.most_common(6))
    return f"{listed} (first {readable_id(os.path.basename(files[0]))!r})"


def split_folder(root: Path, split: str) -> tuple[Path, list[Path]]:
    """The folder of one split, and the folders of all splits that `root` has (itself, if it has none).

    Raises:
        InputError: there is no such split.
    """
    inside = subfolders(root)
    there = [name for name in inside if name in SPLIT_FOLDERS]
    for name in SPLITS.get(split, ()):
        if name in there:
            return root / name, [root / other for other in there]
    if split not in SPLITS or (there and there == inside):
        raise InputError(f"{root} has no split {split!r}; it has {', '.join(there) or 'none, so ask for val'}.")
    if split == "train":
        raise InputError(f"{root} has no folder train/. For training, arrange it as train/CLASS/ and val/CLASS/.")
    return root, [root]


def list_folder(root: Path, split: str) -> Listing:
    """All images of one split.

    Raises:
        InputError: no such split, no image, a class without images, or both images and class folders.
    """
    folder, folders = split_folder(root, split)
    status = folder.stat()
    own = frozenset([(status.st_dev, status.st_ino)])
    inside = {name: files_under(folder / name, own) for name in subfolders(folder)}
    with os.scandir(folder) as entries:
        beside = sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda e: e.name)
    here = [e.path for e in beside if e.name not in inside and (is_image(e.name) or _is_file(e))]
    loose = list(filter(is_image, here))
    by_class = {name: list(filter(is_image, files)) for name, files in inside.items()}
    left_out = [
        file
        for file in [*here, *(file for files in inside.values() for file in files)]
        if not is_image(file) and not file.lower().endswith(SIDECARS)
    ]
    empty = [name for name, files in by_class.items() if not files]
    unread = f" Not read: {endings_of(left_out)}." if left_out else ""
    if not loose and len(empty) == len(by_class):
        raise InputError(f"no image found in {folder}; expected files ending in {' '.join(EXTENSIONS)}.{unread}")
    if loose and len(empty) < len(by_class):
        raise InputError(f"{folder} has both images and class folders ({loose[0]!r} and others). Move one kind away.")
    if empty and not loose:
        raise InputError(f"class folder {empty[0]!r} of {folder} holds no image. Fill or remove it.{unread}")
    if left_out:
        warnings.warn(
            f"{folder}: {len(left_out)} files are left out, whose endings are none of an image that Pillow reads here: "
            f"{endings_of(left_out)}. Convert them to PNG if they are images.",
            stacklevel=5,
        )
    numbered = [other for other in folders if other.name != "test"] or folders
    class_names = sorted({name for other in numbered for name in subfolders(other)}) if not loose else []
    label = {name: k for k, name in enumerate(class_names)}
    files = loose or [file for files in by_class.values() for file in files]
    labels = [-1] * len(loose) or [label.get(name, -1) for name, files in by_class.items() for _ in files]
    start = 0 if root == Path() else len(root.as_posix().rstrip("/")) + 1
    ids = [readable_id(file.removeprefix("./")[start:]) for file in files]
    return Listing(files, ids, labels, tuple(readable_id(name) for name in class_names))
