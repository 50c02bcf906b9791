"""The structure of a maps file, compared with its plan: nothing missing, nothing added, every dataset as promised.

What points outside the file was refused when it was opened (`opening.py`).
"""

import hashlib
from pathlib import Path
from typing import Any

import h5py

from attnprobe.io import fs
from attnprobe.store.hdf5 import ADDED, OUTCOMES, TEXT, file_type
from attnprobe.store.layout import DatasetLayout
from attnprobe.store.opening import refusal
from attnprobe.store.plan import Pinned, digest, require_known_schema
from attnprobe.store.seal import Seal


def check(file: Any, path: Path, seal: Seal) -> Pinned:
    """The plan inside an open file, after the structure was found to be what this plan makes.

    Call it inside `opening.checking`: what damage makes of HDF5's objects can raise anything.

    Raises:
        MapsFileError: anything is missing, added, linked from elsewhere or of another shape or type.
    """
    version = file.attrs.get("schema_version")
    require_known_schema(path, None if version is None else int(version))
    text = file.attrs["plan"]
    if hashlib.sha256(text.encode()).hexdigest() != seal.plan:
        raise refusal(path, "its plan is not the one its seal names")
    pinned = Pinned.from_json(fs.parse_json(text))
    n_images = pinned.n_images if seal.part is None else len(pinned.shard(seal.part))
    if n_images != file.attrs["n_images"] or (seal.part is not None and seal.part >= pinned.n_shards):
        raise refusal(path, f"it has {file.attrs['n_images']} images where its plan has {n_images}")

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
        raise refusal(path, "its certificate is damaged")
    if seal.part is None and digest(read_ids(file)) != pinned.facts["image_ids_sha256"]:
        raise refusal(path, "its image ids are not those of its plan")
    return pinned


def datasets(pinned: Pinned) -> list[tuple[str, DatasetLayout]]:
    """Path in the file and layout of every dataset of maps or tokens."""
    return [(f"stages/{s.name}/{d.name}", d) for s in pinned.layout.stages for d in s.datasets]


def read_certificate(file: Any) -> Any:
    """The certificate in an open file."""
    return fs.parse_json(file.attrs["certificate"])


def read_ids(file: Any) -> list[str]:
    """The image ids of an open file."""
    return list(file["images/id"].asstr()[:])


def _only(path: Path, group: Any, names: dict[str, Any]) -> None:
    """Nothing but these names, each of an object of that class."""
    if set(group) != set(names):
        odd = sorted(set(group) ^ set(names))[0]
        raise refusal(path, f"{odd!r} in {group.name} is {'missing' if odd in names else 'not part of the format'}")
    for name, kind in names.items():
        if group.get(name, getclass=True) is not kind:
            raise refusal(path, f"{name!r} in {group.name} is no {kind.__name__.lower()}")


def _same_column(path: Path, dataset: h5py.Dataset, length: int, dtype: Any) -> None:
    same_type = h5py.check_string_dtype(dataset.dtype) is not None if dtype is TEXT else dataset.dtype == dtype
    if dataset.shape != (length,) or not same_type:
        raise refusal(path, f"{dataset.name} is {dataset.dtype} {dataset.shape}, expected {dtype} ({length},)")


def _check_scale(path: Path, dataset: h5py.Dataset, length: int) -> None:
    if dataset.shape != (length,) or dataset.id.get_storage_size() != 0:
        raise refusal(path, f"{dataset.name} is no bare axis of length {length}")


def _check_maps(path: Path, dataset: h5py.Dataset, layout: DatasetLayout, n_images: int, dtype: str) -> None:
    expected = (layout.full_shape(n_images), layout.chunk)
    if (dataset.shape, dataset.chunks) != expected or not dataset.id.get_type().equal(file_type(dtype)):
        raise refusal(path, f"{dataset.name} has shape and chunk {dataset.shape}, {dataset.chunks}, not {expected}")
    # A chunk that the index lost would read as zeros without an error.
    if dataset.id.get_num_chunks() != layout.n_chunks(n_images):
        raise refusal(path, f"{dataset.id.get_num_chunks()} of {layout.n_chunks(n_images)} chunks in {dataset.name}")
