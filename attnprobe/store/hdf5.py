"""The place of everything inside the HDF5 file.

/                         attributes: format, schema_version, created, model, variant, checkpoint_sha256,
                          config (JSON), versions (JSON), data, seed, device, settings (JSON), certificate
                          (JSON) and its hash, n_images, first_image, complete, and plan: all of it as the seal names it
/images/                  id, label, prediction, probability, pixels (a hash of what the model saw; 0: unknown) [image]
/stages/<name>/           attributes: kind, layers, heads, rows, cols, prefix, patch; where not all were kept, which:
                          kept_layers, kept_heads, kept_queries, counted from 0; where tokens are not the prefix and
                          then all patches row by row, positions [key]: row * cols + col, or -1 for a prefix token
/stages/<name>/weights    [image, layer, head, query, key], attributes stochastic, is_effective; also
               effective, scores: the same at other sites, only where they differ; tokens:
               [image, layer, token, width]; values: [image, layer, head, key, head_width], what the
               effective map multiplies; queries and keys, [image, layer, head, query or key, query_width],
               in place of the weights; and one dimension scale per axis name
"""

from collections.abc import Mapping, Sequence
from io import RawIOBase
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from attnprobe.store.layout import BESIDE, SCHEMA_VERSION, DatasetLayout
from attnprobe.store.plan import Pinned, canonical, digest
from attnprobe.store.seal import BLOCK

OUTCOMES = {"label": "i8", "prediction": "i8", "probability": "f4", "pixels": "i8"}
UNKNOWN = {"label": -1, "prediction": -1, "probability": np.nan, "pixels": 0}
ADDED = ("pixels",)
"""Columns that files of attnprobe 0.1.0 lack."""

FORMAT = ("v110", "v110")
"""File format version: from 1.10 on, HDF5 guards its own index and headers by checksums."""

TEXT = h5py.string_dtype()


def file_type(dtype: str) -> h5py.h5t.TypeID:
    """The type in the file; bfloat16 is a true float type there, which HDF5 converts when it reads."""
    if dtype == "bfloat16":
        bfloat16 = h5py.h5t.IEEE_F32LE.copy()
        bfloat16.set_fields(15, 7, 8, 0, 7)
        bfloat16.set_size(2)
        bfloat16.set_ebias(127)
        return bfloat16
    return {"float16": h5py.h5t.IEEE_F16LE, "float32": h5py.h5t.IEEE_F32LE}[dtype]


def read_words(dataset: h5py.Dataset, start: tuple[int, ...], shape: tuple[int, ...]) -> np.ndarray:
    """Part of a dataset as the bit patterns in the file; HDF5's own conversion of bfloat16 takes 10 times as long."""
    file_type = dataset.id.get_type()
    words = np.empty(shape, f"u{file_type.get_size()}")
    space = dataset.id.get_space()
    space.select_hyperslab(start, shape)
    dataset.id.read(h5py.h5s.create_simple(shape), space, words, mtype=file_type)
    return words


def create(
    target: Path | RawIOBase,
    pinned: Pinned,
    ids: Sequence[str],
    first_image: int = 0,
    certificate: Mapping[str, Any] | None = None,
) -> h5py.File:
    """A new file for these images with everything in it but maps, tokens and outcomes."""
    file = h5py.File(target, "x", userblock_size=BLOCK, libver=FORMAT)
    facts = pinned.facts
    for name in ("model", "variant", "checkpoint_sha256", "data", "device"):
        file.attrs[name] = facts[name]
    for name in ("config", "versions", "settings"):
        file.attrs[name] = canonical(facts[name])
    file.attrs.update(
        format="attnprobe",
        schema_version=SCHEMA_VERSION,
        created=pinned.created,
        seed=-1 if facts["seed"] is None else facts["seed"],
        certificate=canonical(certificate or {}),
        certificate_sha256=digest(certificate or {}),
        n_images=len(ids),
        first_image=first_image,
        complete=len(ids) == pinned.n_images,
        plan=canonical(pinned.to_json()),
    )
    images = file.create_group("images")
    scale = _scale(images, "image", len(ids))
    columns = {"id": images.create_dataset("id", data=list(ids), dtype=TEXT)}
    for name, dtype in OUTCOMES.items():
        columns[name] = images.create_dataset(
            name, shape=(len(ids),), dtype=dtype, chunks=(len(ids),), compression="gzip", fletcher32=True
        )
    for column in columns.values():
        column.dims[0].attach_scale(scale)
    for stage in pinned.layout.stages:
        group = file.create_group(f"stages/{stage.name}")
        group.attrs.update(kind=stage.kind, rows=stage.rows, cols=stage.cols, patch=stage.patch)
        if "head" in stage.dimensions:
            group.attrs["heads"] = stage.dimensions["head"]
        for name in ("kept_layers", "kept_heads", "kept_queries", "positions"):  # where not all were kept, or in order
            if (kept := getattr(stage, name)) is not None:
                group.attrs[name] = np.array(kept, "i4")
        for name, texts in (("layers", stage.layers), ("prefix", stage.prefix)):
            group.attrs.create(name, np.array(texts, dtype=object), dtype=TEXT)
        scales = {axis: _scale(group, axis, n) for axis, n in {"image": len(ids), **stage.dimensions}.items()}
        for layout in stage.datasets:
            dataset = _create_dataset(group, layout, len(ids), pinned.layout.dtype)
            for dimension, axis in zip(dataset.dims, layout.axes, strict=True):
                dimension.attach_scale(scales[axis])
    return file


def _create_dataset(group: h5py.Group, layout: DatasetLayout, n_images: int, dtype: str) -> h5py.Dataset:
    shape = layout.full_shape(n_images)
    largest = (max(n_images, layout.chunk[0]), *shape[1:])  # HDF5 wants no chunk larger than the largest shape
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(layout.chunk)
    properties.set_shuffle()
    properties.set_deflate(1)
    properties.set_fletcher32()
    properties.set_obj_track_times(False)
    space = h5py.h5s.create_simple(shape, largest)
    dataset = h5py.Dataset(h5py.h5d.create(group.id, layout.name.encode(), file_type(dtype), space, properties))
    if layout.name not in BESIDE:
        dataset.attrs.update(stochastic=layout.stochastic, is_effective=layout.is_effective)
    return dataset


def _scale(group: h5py.Group, axis: str, length: int) -> h5py.Dataset:
    scale = group.create_dataset(axis, shape=(length,), dtype="f4")
    # The netCDF way of saying that an axis has a name but no coordinate values; xarray reads it so.
    scale.make_scale(f"This is a netCDF dimension but not a netCDF variable. {length:9d}")
    return scale
