"""The images of a folder in an object store, arranged as `folder` describes, from one listing of its names.

No file is opened to make the list: a million names are a thousand requests. Ids, labels and their order are those of
the same folder on a disk.
"""

import warnings
from collections import defaultdict
from collections.abc import Iterable

from attnprobe.core.errors import InputError
from attnprobe.core.images import InputSpec
from attnprobe.data.decode import DecodedImages
from attnprobe.data.folder import SIDECARS, SPLIT_FOLDERS, SPLITS, endings_of, is_image
from attnprobe.data.image_files import READING, Reading
from attnprobe.data.ranges import Ranges, load_ranges
from attnprobe.io.remote import RemotePath, place


def load_remote_folder(
    name: str, split: str = "val", *, spec: InputSpec, limit: int | None = None, reading: Reading = READING
) -> DecodedImages:
    """The images of one split of a folder in an object store, with timm's evaluation transform.

    Raises:
        InputError: see `list_remote_folder`.
    """
    root = place(name)
    assert isinstance(root, RemotePath), "other names are of other kinds"
    return load_ranges(f"{root.name}/{split}", list_remote_folder(root, split), spec, limit, reading)


def list_remote_folder(root: RemotePath, split: str) -> Ranges:
    """All images of one split.

    Raises:
        InputError: no such folder or split, no image, or both images and class folders.
    """
    sizes = {name: size for name, (size, _) in root.states().items() if _is_visible(name)}
    if not sizes:
        raise InputError(f"no folder at {root}: no object's name begins so. Check it, and the bucket.")
    folder = _split_folder(root, split, set(_by_folder(sizes)) - {""})
    classes = _by_folder(name.removeprefix(folder) for name in sizes if name.startswith(folder))
    images = {name: sorted(filter(is_image, files)) for name, files in classes.items()}
    images = {name: files for name, files in images.items() if files}
    left_out = [n for files in classes.values() for n in files if not is_image(n) and not n.lower().endswith(SIDECARS)]
    unread = f" Not read: {endings_of(left_out)}." if left_out else ""
    where = root / folder if folder else root
    if not images:
        raise InputError(f"no image found in {where}; expected files such as .png and .jpg.{unread}")
    if "" in images and len(images) > 1:
        raise InputError(
            f"{where} has both images and class folders ({images[''][0]!r} and others). Move one kind away."
        )
    if left_out:
        warnings.warn(f"{where}: {len(left_out)} files are left out: {endings_of(left_out)}.", stacklevel=4)
    class_names = () if "" in images else _class_names(sizes, folder)
    label = {name: k for k, name in enumerate(class_names)}
    names = [f"{folder}{file}" for name in sorted(images) for file in images[name]]
    labels = [label.get(name, -1) for name in sorted(images) for _ in images[name]]
    there = [sizes[name] for name in names]
    return Ranges([root / name for name in names], [0] * len(names), there, names, labels, class_names)


def _is_visible(name: str) -> bool:
    """False for hidden files, and for the empty objects that some programs make in a folder's stead."""
    return bool(name) and not name.endswith("/") and not any(part.startswith(".") for part in name.split("/"))


def _by_folder(names: Iterable[str]) -> dict[str, list[str]]:
    """Names by their first folder, "" for those in none."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in names:
        first, slash, _ = name.partition("/")
        found[first if slash else ""].append(name)
    return found


def _split_folder(root: RemotePath, split: str, inside: set[str]) -> str:
    """The beginning of the names of one split, "" where there are no splits."""
    there = inside & SPLIT_FOLDERS
    for name in SPLITS.get(split, ()):
        if name in there:
            return f"{name}/"
    if split not in SPLITS or split == "train" or (there and there == inside):
        raise InputError(f"{root} has no split {split!r}; it has {', '.join(sorted(there)) or 'none, so ask for val'}.")
    return ""


def _class_names(sizes: dict[str, int], folder: str) -> tuple[str, ...]:
    """Names of the classes over all splits; test/ adds none if there are others."""
    if not folder:
        return tuple(sorted(set(_by_folder(sizes)) - {""}))
    splits = {name: files for name, files in _by_folder(sizes).items() if name in SPLIT_FOLDERS}
    numbered = {name: files for name, files in splits.items() if name != "test"} or splits
    inner = (_by_folder(file.removeprefix(f"{name}/") for file in files) for name, files in numbered.items())
    return tuple(sorted({name for classes in inner for name in classes} - {""}))
