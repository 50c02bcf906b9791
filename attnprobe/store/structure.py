"""Can this HDF5 file make us read anything but what its plan promises?

A hash proves that a file is as it was written, not who wrote it. HDF5 can point outside itself: links to
other files are followed, external storage returns any readable file's bytes, a virtual dataset whose
source is missing reads as zeros. So nothing is looked up that is not on the list below, and every dataset
must be exactly what the plan says.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import h5py

from attnprobe.core.errors import MapsFileError
from attnprobe.store.hdf5 import ADDED, OUTCOMES, TEXT, file_type
from attnprobe.store.layout import ITEM_BYTES, DatasetLayout
from attnprobe.store.plan import Pinned, digest, require_known_schema
from attnprobe.store.seal import Seal

FILTERS = {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_FLETCHER32}
LARGEST_RATIO = 1032
"""Deflate cannot pack tighter, so a file that declares more than this times its size lies."""
ALWAYS_ALLOWED = 4 << 30


def check(file: h5py.File, path: Path, seal: Seal) -> Pinned:
    """The plan inside an open file, after the structure was found to be what this plan makes.

    Raises:
        MapsFileError: anything is missing, added, linked from elsewhere or of another shape or type.
    """
    try:
        return _check(file, path, seal)
    except MapsFileError:
        raise
    except Exception as error:  # libhdf5 on damaged structure raises seven kinds
        raise _refusal(path, f"it cannot be read ({type(error).__name__}: {error})") from error


def _refusal(path: Path, what: str) -> MapsFileError:
    return MapsFileError(f"{path} is refused: {what}. Restore it or capture again.")


def _check(file: Any, path: Path, seal: Seal) -> Pinned:
    version = file.attrs.get("schema_version")
    require_known_schema(path, None if version is None else int(version))
    text = file.attrs["plan"]
    if hashlib.sha256(text.encode()).hexdigest() != seal.plan:
        raise _refusal(path, "its plan is not the one its seal names")
    pinned = Pinned.from_json(json.loads(text))
    n_images = pinned.n_images if seal.part is None else len(pinned.shard(seal.part))
    if n_images != file.attrs["n_images"] or (seal.part is not None and seal.part >= pinned.n_shards):
        raise _refusal(path, f"it has {file.attrs['n_images']} images where its plan has {n_images}")

    declared = n_images * sum(ITEM_BYTES[pinned.layout.dtype] * math.prod(d.shape) for _, d in datasets(pinned))
    if declared > max(ALWAYS_ALLOWED, LARGEST_RATIO * seal.size):
        raise _refusal(path, f"it declares {declared} bytes of maps and has {seal.size}")

    _only(path, file, {"images": h5py.Group, "stages": h5py.Group})
    images = file["images"]
    columns = {name: dtype for name, dtype in OUTCOMES.items() if name in images or name not in ADDED}
    _only(path, images, dict.fromkeys(("id", "image", *columns), h5py.Dataset))
    _same_column(path, images["id"], n_images, TEXT)
    for name, dtype in columns.items():
        _same_column(path, images[name], n_images, dtype)
    _check_scale(path, images["image"], n_images)

    _only(path, file["stages"], {stage.name: h5py.Group for stage in pinned.layout.stages})
    for stage in pinned.layout.stages:
        group = file["stages"][stage.name]
        scales = {"image": n_images, **stage.dimensions}
        _only(path, group, dict.fromkeys((*scales, *(d.name for d in stage.datasets)), h5py.Dataset))
        for axis, length in scales.items():
            _check_scale(path, group[axis], length)
        for layout in stage.datasets:
            _check_maps(path, group[layout.name], layout, n_images, pinned.layout.dtype)

    if digest(read_certificate(file)) != file.attrs["certificate_sha256"]:
        raise _refusal(path, "its certificate is damaged")
    if seal.part is None and digest(read_ids(file)) != pinned.facts["image_ids_sha256"]:
        raise _refusal(path, "its image ids are not those of its plan")
    return pinned


def datasets(pinned: Pinned) -> list[tuple[str, DatasetLayout]]:
    """Path in the file and layout of every dataset of maps or tokens."""
    return [(f"stages/{s.name}/{d.name}", d) for s in pinned.layout.stages for d in s.datasets]


def read_certificate(file: Any) -> dict[str, Any]:
    """What capture proved, of an open file."""
    return json.loads(file.attrs["certificate"])


def read_ids(file: Any) -> list[str]:
    """The image ids of an open file."""
    return list(file["images/id"].asstr()[:])


def _only(path: Path, group: Any, names: dict[str, Any]) -> None:
    """Nothing but these names, each a hard link to an object of that class."""
    if set(group) != set(names):
        odd = sorted(set(group) ^ set(names))[0]
        raise _refusal(path, f"{odd!r} in {group.name} is {'missing' if odd in names else 'not part of the format'}")
    for name, kind in names.items():
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise _refusal(path, f"{name!r} in {group.name} is a link to somewhere else")
        if group.get(name, getclass=True) is not kind:
            raise _refusal(path, f"{name!r} in {group.name} is no {kind.__name__.lower()}")


def _own_storage(path: Path, dataset: h5py.Dataset) -> None:
    if dataset.external is not None or dataset.is_virtual:
        raise _refusal(path, f"{dataset.name} keeps its data outside the file")
    properties = dataset.id.get_create_plist()
    if not {properties.get_filter(i)[0] for i in range(properties.get_nfilters())} <= FILTERS:
        raise _refusal(path, f"{dataset.name} has a filter other than shuffle, deflate and fletcher32")


def _same_column(path: Path, dataset: h5py.Dataset, length: int, dtype: Any) -> None:
    _own_storage(path, dataset)
    same_type = h5py.check_string_dtype(dataset.dtype) is not None if dtype is TEXT else dataset.dtype == dtype
    if dataset.shape != (length,) or not same_type:
        raise _refusal(path, f"{dataset.name} is {dataset.dtype} {dataset.shape}, expected {dtype} ({length},)")


def _check_scale(path: Path, dataset: h5py.Dataset, length: int) -> None:
    _own_storage(path, dataset)
    if dataset.shape != (length,) or dataset.id.get_storage_size() != 0:
        raise _refusal(path, f"{dataset.name} is no bare axis of length {length}")


def _check_maps(path: Path, dataset: h5py.Dataset, layout: DatasetLayout, n_images: int, dtype: str) -> None:
    _own_storage(path, dataset)
    expected = (layout.full_shape(n_images), layout.chunk)
    if (dataset.shape, dataset.chunks) != expected or not dataset.id.get_type().equal(file_type(dtype)):
        raise _refusal(path, f"{dataset.name} has shape and chunk {dataset.shape}, {dataset.chunks}, not {expected}")
    # A chunk that the index lost would read as zeros without an error.
    if dataset.id.get_num_chunks() != layout.n_chunks(n_images):
        raise _refusal(path, f"{dataset.id.get_num_chunks()} of {layout.n_chunks(n_images)} chunks in {dataset.name}")
