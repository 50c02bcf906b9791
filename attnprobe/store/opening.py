"""The gate that every HDF5 file passes before anything in it is read.

A hash proves that a file is as it was written, not who wrote it. HDF5 can point outside itself: links to other files
are followed, external storage returns any readable file's bytes, a virtual dataset whose source is missing reads as
zeros, and a dataset may declare terabytes. So a file is walked once by its links and headers alone, and refused if it
holds anything but groups and datasets that keep their own data.
"""

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py

from attnprobe.core.errors import MapsFileError
from attnprobe.io import fs
from attnprobe.io.remote import RemotePath

FILTERS = {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32}
LARGEST_RATIO = 1032
"""Deflate cannot pack tighter, so a file that declares more than this times its size lies."""
ALWAYS_ALLOWED = 4 << 30
MOST_OBJECTS = 10_000

ANY_SIZE = 1 << 62
"""Maps files are read a piece at a time, and may be larger than memory."""


def open_hdf5(path: Path, content: io.BytesIO | None = None, *, allowed: int | None = None) -> h5py.File:
    """An HDF5 file, open for reading, in which nothing leads outside.

    Args:
        path: where it is; how messages call it.
        content: its bytes, if they were read already; then these are what is opened.
        allowed: bytes that its datasets may declare together, however small it is; `ALWAYS_ALLOWED` if None.

    Raises:
        MapsFileError: no HDF5 file, or one with a link, storage outside itself, an unknown filter, or a declared size
            that it cannot hold.
    """
    try:
        source = path if content is None else content
        if isinstance(source, RemotePath):  # read by range requests
            source = fs.open_regular(source, ANY_SIZE)
        size = source.stat().st_size if isinstance(source, Path) else fs.size_of(source)
        file = h5py.File(source, "r")
    except OSError as error:
        raise MapsFileError(f"{path} cannot be read: {error}. Restore it or capture again.") from None
    with checking(path, file):
        declared = sum(_declared(path, dataset) for dataset in _datasets(path, file))
        if declared > max(ALWAYS_ALLOWED if allowed is None else allowed, LARGEST_RATIO * size):
            raise refusal(path, f"it declares {declared} bytes and has {size}")
    return file


@contextmanager
def checking(path: Path, file: h5py.File) -> Iterator[None]:
    """Close the file if it turns out to be damaged, of which libhdf5 tells by seven kinds of errors, and refuse it."""
    try:
        yield
    except BaseException as error:
        file.close()
        if isinstance(error, MapsFileError) or not isinstance(error, Exception):
            raise
        raise refusal(path, f"it cannot be read ({type(error).__name__}: {error})") from error


def refusal(path: Path, what: str) -> MapsFileError:
    """The error for a file that is not as it should be."""
    return MapsFileError(f"{path} is refused: {what}. Restore it or capture again.")


def _datasets(path: Path, file: Any) -> Iterator[h5py.Dataset]:
    """Every dataset, found through hard links only; each group is entered once, or a cycle would not end."""
    seen, waiting, n_objects = {file.id.__hash__()}, [file], 0
    while waiting:
        group = waiting.pop()
        for name in group:
            n_objects += 1
            if not isinstance(group.get(name, getlink=True), h5py.HardLink):
                raise refusal(path, f"{name!r} in {group.name} is a link to somewhere else")
            kind = group.get(name, getclass=True)
            if kind not in (h5py.Group, h5py.Dataset) or n_objects > MOST_OBJECTS:
                raise refusal(path, f"{name!r} in {group.name} is no group or dataset, or one of too many")
            found = group[name]
            if kind is h5py.Dataset:
                yield found
            elif found.id.__hash__() not in seen:
                seen.add(found.id.__hash__())
                waiting.append(found)


def _declared(path: Path, dataset: h5py.Dataset) -> int:
    """Bytes that a dataset claims to hold, its data being in this file."""
    if dataset.external is not None or dataset.is_virtual:
        raise refusal(path, f"{dataset.name} keeps its data outside the file")
    properties = dataset.id.get_create_plist()
    if not {properties.get_filter(i)[0] for i in range(properties.get_nfilters())} <= FILTERS:
        raise refusal(path, f"{dataset.name} has a filter other than shuffle, deflate and fletcher32")
    return 0 if dataset.shape is None else math.prod(dataset.shape) * dataset.id.get_type().get_size()
