"""Images in tar files, as WebDataset arranges them: members of one name and several endings are one sample.

    shards/train-000000.tar      n01440764_10026.jpg, n01440764_10026.cls, n01440764_10027.jpg, ...

Every file is read once from front to back to learn where its images are; that index is kept in the cache, under a hash
of the file's name, size and time. Afterwards an image is one read, so that any process can take any part.
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

from attnprobe.core.errors import InputError
from attnprobe.core.images import InputSpec
from attnprobe.data.decode import DecodedImages
from attnprobe.data.folder import is_image
from attnprobe.data.image_files import READING, Reading
from attnprobe.data.listing import number_classes
from attnprobe.data.ranges import Ranges, load_ranges
from attnprobe.io import fs
from attnprobe.io.download import state_of
from attnprobe.io.progress import progress
from attnprobe.io.remote import RemotePath, matching, place

AT_ONCE = 4
"""Tar files that are indexed at once."""

MOST_LABEL = 1_000
"""Bytes of a .cls member, which holds a number or a name."""

MOST_FILES = 100_000
"""Tar files that one pattern may name."""

Sample = tuple[str, int, int, str]
"""Key, first byte, bytes, and what its .cls says, "" without one."""


def load_tar_shards(
    name: str, split: str = "val", *, spec: InputSpec, limit: int | None = None, reading: Reading = READING
) -> DecodedImages:
    """The images of tar files, with timm's evaluation transform.

    Args:
        name: a path or URL that ends in .tar, with * and {000..011} for several.

    Raises:
        InputError: no such file, no image, an image without label among labelled ones, or a name twice.
    """
    if split not in ("val", "validation", "test"):
        raise InputError(f"tar files have no split {split!r}; ask for val, and name the files of the split.")
    files = tar_files(name)
    with progress(f"index {len(files)} tar files", len(files)) as advance, ThreadPoolExecutor(AT_ONCE) as pool:
        indexes = []
        for index in pool.map(index_of, files):
            indexes.append(index)
            advance(1)
    samples = [(file, *sample) for file, index in zip(files, indexes, strict=True) for sample in index]
    if not samples:
        raise InputError(f"no image found in {name}; expected members such as .jpg and .png.")
    paths, keys, starts, sizes, written = map(list, zip(*samples, strict=True))
    ids = [f"{file.stem}/{key}" for file, key in zip(paths, keys, strict=True)]
    if len(set(ids)) < len(ids):
        raise InputError(
            f"{name}: a sample's name comes twice among {len(ids)}; files and samples need distinct names."
        )
    known = [text for text in written if text]
    if known and len(known) < len(ids):
        raise InputError(f"{name}: {len(ids) - len(known)} of {len(ids)} images have no .cls. Label all or none.")
    labels, class_names = number_classes(known, place(name)) if known else ([-1] * len(ids), ())
    ranges = Ranges(paths, starts, sizes, ids, labels, class_names)
    return load_ranges(f"{files[0].parent.name}/{split}", ranges, spec, limit, reading)


def tar_files(pattern: str) -> list[Path]:
    """The files that a pattern names, in order.

    Raises:
        InputError: none is there, or more than `MOST_FILES`.
    """
    named = [place(text).expanduser() for text in _expanded(pattern)]
    files = [file for path in named for file in (matching(str(path)) if re.search(r"[*?\[]", str(path)) else [path])]
    missing = next((path for path in files if not isinstance(path, RemotePath) and not path.is_file()), None)
    if not files or missing:
        raise InputError(
            f"no tar file at {missing or pattern}. Name files that end in .tar, as in shards-{{000..011}}.tar."
        )
    return files


def _expanded(pattern: str) -> Iterator[str]:
    """`a-{08..10}.tar` -> a-08.tar, a-09.tar, a-10.tar."""
    pieces = re.split(r"\{(\d+)\.\.(\d+)\}", pattern)
    ranges = [range(int(first), int(last) + 1) for first, last in zip(pieces[1::3], pieces[2::3], strict=True)]
    n_files = 1
    for numbers in ranges:
        n_files *= len(numbers)
    if n_files > MOST_FILES:
        raise InputError(f"{pattern} names {n_files} files, at most {MOST_FILES} are read.")
    widths = [len(first) for first in pieces[1::3]]
    for chosen in product(*ranges):
        texts = [f"{number:0{width}d}" for number, width in zip(chosen, widths, strict=True)]
        yield "".join(a + b for a, b in zip(pieces[::3], [*texts, ""], strict=True))


def index_of(file: Path) -> list[Sample]:
    """Every image of a tar file, from the cache if it was read before.

    Raises:
        InputError: it cannot be read as a tar file.
    """
    shelf = fs.cache_folder() / "tar"
    kept = shelf / f"{hashlib.sha256(state_of(file).encode()).hexdigest()[:32]}.json"
    try:
        return [
            (str(key), int(start), int(size), str(text)) for key, start, size, text in json.loads(kept.read_bytes())
        ]
    except (OSError, ValueError, TypeError):
        pass
    try:
        with fs.open_regular(file, 1 << 62) as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
            samples = list(_samples(tar))
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"{file} cannot be read as a tar file: {error}. Copy it again.") from error
    fs.make_folder(shelf)
    fs.write_file(kept, json.dumps(samples).encode(), overwrite=True)
    return samples


def _samples(tar: tarfile.TarFile) -> Iterator[Sample]:
    """The images of a tar file; what has an image's name without its ending belongs to it if it follows or precedes."""
    current: dict[str, Any] = {}
    for member in tar:
        folder, _, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        if not member.isreg() or not stem:  # a link, or a hidden file
            continue
        key = f"{folder}/{stem}" if folder else stem
        if key != current.get("key"):
            yield from _finished(current)
            current = {"key": key, "text": ""}
        if ending.lower() == "cls" and member.size <= MOST_LABEL:
            content = tar.extractfile(member)
            current["text"] = "" if content is None else content.read().decode("utf-8", "replace").strip()
        elif is_image(base) and "image" not in current:
            current["image"] = (member.offset_data, member.size)
        tar.members = []  # type: ignore[attr-defined]  # it would keep every header it has seen
    yield from _finished(current)


def _finished(sample: dict[str, Any]) -> Iterator[Sample]:
    if "image" in sample:
        yield (sample["key"], *sample["image"], sample["text"])
