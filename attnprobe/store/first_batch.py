"""Layout of the whole file, from the maps of a few images: shapes, chunks, and how many images are a shard."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from attnprobe.core.errors import InputError, ShapeError, option
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.sites import SITES
from attnprobe.store.layout import ITEM_BYTES, DatasetLayout, Layout, StageLayout, chunk_shape, shard_images
from attnprobe.store.shard import encoded, tensors

Chunk = Callable[[tuple[int, ...]], tuple[int, ...]]
"""From the shape of a dataset without its image axis to that of its chunks."""


def stage_layouts(
    maps: Sequence[AttentionMaps], dtype: str, batch_images: int | None = None
) -> tuple[StageLayout, ...]:
    """The stages and datasets that hold these maps, all of the same images.

    Args:
        batch_images: images of one batch, which a chunk then divides; any number if None.

    Raises:
        ShapeError: two sites of a stage, or its tokens or values, disagree about layers, grid or shape.
        InputError: a stage has a site twice, or a name that cannot be a group's, or queries and keys come with another
            type than float32 or another map than their softmax.
    """
    by_stage: dict[str, list[AttentionMaps]] = {}
    for m in maps:
        by_stage.setdefault(m.stage, []).append(m)
    chunk = partial(chunk_shape, item_bytes=ITEM_BYTES[dtype], batch_images=batch_images)
    return tuple(_stage_layout(name, members, chunk, ITEM_BYTES[dtype]) for name, members in by_stage.items())


def _stage_layout(name: str, maps: list[AttentionMaps], chunk: Chunk, item_bytes: int) -> StageLayout:
    first = maps[0]
    if not name or "/" in name or name.startswith("."):
        raise InputError(f"a stage needs a plain name such as 'trunk', got {name!r}.")
    if len({m.site for m in maps}) != len(maps):
        raise InputError(f"stage {name!r} came with sites {[m.site for m in maps]}; append each site once.")
    for m in maps[1:]:
        described = [(x.values.shape[1:], x.grid, x.kind, x.layers, x.part) for x in (first, m)]
        if described[0] != described[1]:
            raise ShapeError(
                f"sites {first.site} and {m.site} of stage {name!r} must agree in shape, grid, kind and layers, got "
                f"{described[0]} and {described[1]}."
            )
    datasets = []
    for m in sorted(maps, key=lambda m: list(SITES).index(m.site)):
        if m.site == "weights" and m.factors is not None:
            datasets += _factors(m, m.factors, chunk, item_bytes)
            continue
        shape = tuple(m.values.shape[1:])
        datasets.append(DatasetLayout(m.site, shape, chunk(shape), m.stochastic, m.is_effective))
    lead = tuple(first.values.shape)
    for dataset, what, extra, axes, like in (
        ("tokens", "tokens", first.tokens, "layer, token, width", lead[:2]),
        ("values", "value_vectors", first.value_vectors, "layer, head, key, width", (*lead[:3], lead[-1])),
    ):
        if extra is None:
            continue
        shape = tuple(extra.shape[1:])
        if len(shape) != axes.count(",") + 1 or tuple(extra.shape[: len(like)]) != like:
            raise ShapeError(f"{what} must be [image, {axes}] with the maps' {like} first, got {tuple(extra.shape)}.")
        datasets.append(DatasetLayout(dataset, shape, chunk(shape), False, False))
    grid, kept = first.grid, (first.part.layers, first.part.heads, first.part.queries)
    return StageLayout(
        name,
        first.kind,
        first.layers,
        grid.rows,
        grid.cols,
        grid.prefix,
        grid.patch,
        tuple(datasets),
        *kept,
        grid.positions,
    )


def _factors(maps: AttentionMaps, factors: tuple[Tensor, Tensor], chunk: Chunk, item_bytes: int) -> list[DatasetLayout]:
    """Queries and keys in place of the maps."""
    queries, keys = factors
    lead, width = maps.values.shape[:3], queries.shape[-1]
    wanted = (*lead, maps.values.shape[3], width), (*lead, maps.values.shape[4], width)
    if (queries.shape, keys.shape) != wanted:
        raise ShapeError(f"factors must be of shapes {wanted}, got {tuple(queries.shape)} and {tuple(keys.shape)}.")
    if item_bytes < 4 or not (maps.stochastic and maps.is_effective):
        raise InputError(
            "queries and keys are stored in place of softmax maps that multiply V, and as float32, without which the "
            f"maps would not come back as they were; choose {option('dtype', 'float32')}."
        )
    shapes = {"queries": tuple(queries.shape[1:]), "keys": tuple(keys.shape[1:])}
    return [DatasetLayout(name, shape, chunk(shape), False, False) for name, shape in shapes.items()]


def decide(maps: Sequence[AttentionMaps], dtype: str, batch_images: int | None = None) -> Layout:
    """The layout of the whole file, its shard size from what a few chunks of these images take."""
    stages = stage_layouts(maps, dtype, batch_images)
    image_bytes = 0.0
    for _, layout, values in tensors(maps, stages):
        few, corners = values[: layout.chunk[0]], list(layout.corners())
        some = corners[:: math.ceil(len(corners) / 4)]
        sizes = [len(data) for _, data in encoded(layout, few, getattr(torch, dtype), some)]
        image_bytes += sum(sizes) / len(sizes) * len(corners) / len(few)
    unit = batch_images or max(layout.chunk[0] for stage in stages for layout in stage.datasets)
    stored = math.ceil(image_bytes)
    return Layout(dtype, shard_images(stored, unit), stored, stages)


def difference(first: Sequence[StageLayout], now: Sequence[StageLayout]) -> str:
    """In what maps are unlike the first ones; "" if in nothing."""
    if tuple(first) == tuple(now):
        return ""
    if [s.name for s in first] != [s.name for s in now]:
        return f"stages {[s.name for s in now]}, not {[s.name for s in first]}"
    before, after = next((a, b) for a, b in zip(first, now, strict=True) if a != b)
    if [d.name for d in before.datasets] != [d.name for d in after.datasets]:
        return f"stage {after.name} has {[d.name for d in after.datasets]}, not {[d.name for d in before.datasets]}"
    for old, new in zip(before.datasets, after.datasets, strict=True):
        if old != new:
            return (
                f"{after.name}/{new.name} is {new.shape}, stochastic={new.stochastic}, "
                f"is_effective={new.is_effective}, not {old.shape}, {old.stochastic}, {old.is_effective}"
            )
    return f"stage {after.name} has other layer names, grid or kind"
