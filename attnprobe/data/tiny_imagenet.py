"""Tiny-ImageNet as it is unpacked: the classes of its validation images are in a table.

    wnids.txt, words.txt                            the 200 classes (n01443537), and names of many more
    train/n01443537/images/n01443537_0.JPEG         500 of each class
    val/images/val_0.JPEG, val/val_annotations.txt  10,000, and lines of: val_0.JPEG, tab, n03444034, tab, a box
    test/images/test_0.JPEG                         10,000 without classes

Read as any folder, val/ would be 10,000 images of a class "images". Classes are numbered in sorted order of their
wnids, as in torchvision, not in the order of wnids.txt.
"""

import os
from pathlib import Path

from attnprobe.core.errors import InputError
from attnprobe.data.listing import Listing

SPLITS = {"train": "train", "val": "val", "validation": "val", "test": "test"}


def is_tiny_imagenet(root: Path) -> bool:
    """True if a folder has this layout."""
    return (root / "wnids.txt").is_file() and (root / "val" / "images").is_dir()


def lines_of(file: Path) -> list[str]:
    """The lines of a text file that are not empty."""
    try:
        return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        why = "no such file" if isinstance(error, FileNotFoundError) else str(error).splitlines()[0]
        raise InputError(f"cannot read {file}, which Tiny-ImageNet needs: {why}. Unpack the set again.") from error


def jpegs_in(folder: Path) -> list[str]:
    """Names of the JPEG files of a folder, sorted."""
    if not folder.is_dir():
        raise InputError(f"Tiny-ImageNet has no folder {folder}. Unpack the set again.")
    return sorted(name for name in os.listdir(folder) if not name.startswith(".") and name.endswith(".JPEG"))


def annotated(root: Path, number: dict[str, int]) -> list[tuple[str, int]]:
    """Name and label of every validation image, in the order of val_annotations.txt."""
    where, table = root / "val" / "val_annotations.txt", {}
    for line in lines_of(where):
        file, _, rest = line.partition("\t")
        wnid = rest.partition("\t")[0]
        if wnid not in number or file in table or os.path.basename(file) != file:
            raise InputError(f"{where}: expected an image's name, a tab and one of wnids.txt, each once, got {line!r}.")
        table[file] = number[wnid]
    unnamed = sorted(set(jpegs_in(root / "val" / "images")) - set(table))
    if unnamed:
        raise InputError(
            f"{where} names {len(table)} images, but not {unnamed[0]!r} and {len(unnamed) - 1} others that lie in "
            "val/images. Unpack the set again."
        )
    return list(table.items())


def list_tiny_imagenet(root: Path, split: str) -> Listing:
    """All images of one split; the names of a class are those of words.txt ("goldfish, Carassius auratus").

    Raises:
        InputError: no such split, or tables and folders that are missing or do not fit together.
    """
    if split not in SPLITS:
        raise InputError(f"{root} has no split {split!r}; it has train, val and test.")
    wnids = sorted({line.strip() for line in lines_of(root / "wnids.txt")})
    words = dict(line.split("\t", 1) for line in lines_of(root / "words.txt") if "\t" in line)
    nameless = [wnid for wnid in wnids if wnid not in words]
    if nameless:
        raise InputError(f"{root / 'words.txt'} has no line for {nameless[0]!r} of wnids.txt. Unpack the set again.")
    number = {wnid: k for k, wnid in enumerate(wnids)}
    images: list[tuple[str, int]]
    if SPLITS[split] == "train":
        folders = {f"train/{wnid}/images": label for wnid, label in number.items()}
        images = [(f"{sub}/{name}", label) for sub, label in folders.items() for name in jpegs_in(root / sub)]
    elif SPLITS[split] == "val":
        images = [(f"val/images/{name}", label) for name, label in annotated(root, number)]
    else:
        images = [(f"test/images/{name}", -1) for name in jpegs_in(root / "test" / "images")]
    if not images:
        raise InputError(f"no image found in split {split!r} of {root}. Unpack the set again.")
    ids = [name for name, _label in images]
    names = tuple(words[wnid].strip() for wnid in wnids)
    return Listing([(root / name).as_posix() for name in ids], ids, [label for _name, label in images], names)
