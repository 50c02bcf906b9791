"""The images of a folder and their classes.

    photos/train/cat/a.png, photos/val/cat/b.png     splits, each with a folder per class
    photos/cat/a.png                                 a folder per class
    photos/a.png                                     no classes: every label is -1
    tiny-imagenet-200/                               as it is unpacked; see tiny_imagenet.py

Classes are sorted by name, as in torchvision, and numbered over all splits together, so that a class missing
from one split shifts no label in it; but test/ adds none if there are other splits, since it often holds one folder of
images without classes, whose labels are then -1. Hidden files and files without an image's ending are ignored.
"""

import os
from pathlib import Path

from attnprobe.core.errors import InputError
from attnprobe.data.listing import Listing, readable_id

EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")

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


def images_under(folder: Path, seen: frozenset[tuple[int, int]] = frozenset()) -> list[str]:
    """Paths of all images in a folder and below, sorted. Each real folder is entered once, so link cycles end."""
    entered, found, waiting = set(seen), [], [folder]
    while waiting:
        here = waiting.pop()
        status = here.stat()
        if (status.st_dev, status.st_ino) in entered:
            continue
        entered.add((status.st_dev, status.st_ino))
        for name in sorted(os.listdir(here), reverse=True):
            path = here / name
            if name.startswith("."):
                continue
            if path.is_dir():
                waiting.append(path)
            elif path.suffix.lower() in EXTENSIONS:
                found.append(path.as_posix())
    return sorted(found)


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
    by_class = {name: images_under(folder / name, own) for name in subfolders(folder)}
    loose = [
        (folder / name).as_posix()
        for name in sorted(os.listdir(folder))
        if name not in by_class and not name.startswith(".") and name.lower().endswith(EXTENSIONS)
    ]
    empty = [name for name, files in by_class.items() if not files]
    if not loose and len(empty) == len(by_class):
        raise InputError(f"no image found in {folder}; expected files ending in {' '.join(EXTENSIONS)}.")
    if loose and len(empty) < len(by_class):
        raise InputError(f"{folder} has both images and class folders ({loose[0]!r} and others). Move one kind away.")
    if empty and not loose:
        raise InputError(f"class folder {empty[0]!r} of {folder} holds no image. Fill or remove it.")
    numbered = [other for other in folders if other.name != "test"] or folders
    class_names = sorted({name for other in numbered for name in subfolders(other)}) if not loose else []
    label = {name: k for k, name in enumerate(class_names)}
    files = loose or [file for files in by_class.values() for file in files]
    labels = [-1] * len(loose) or [label.get(name, -1) for name, files in by_class.items() for _ in files]
    ids = [readable_id(Path(file).relative_to(root).as_posix()) for file in files]
    return Listing(files, ids, labels, tuple(readable_id(name) for name in class_names))
