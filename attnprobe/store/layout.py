"""Datasets of a maps file, and the chunks that each is cut into."""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from attnprobe.core.grid import TokenGrid
from attnprobe.core.sites import SITES

SCHEMA_VERSION = 1
ITEM_BYTES = {"bfloat16": 2, "float16": 2, "float32": 4}
MAP_AXES = ("image", "layer", "head", "query", "key")
BESIDE = {
    "tokens": ("image", "layer", "token", "width"),
    "values": ("image", "layer", "head", "key", "head_width"),
    "queries": ("image", "layer", "head", "query", "query_width"),
    "keys": ("image", "layer", "head", "key", "query_width"),
}
"""Datasets beside the maps, with their axes. Queries, scaled, and keys are there in place of the weights, which are the
softmax of their product."""

LARGEST_CHUNK = 4 << 20
SMALLEST_CHUNK = 64 << 10
SEVERAL_MAPS = 256 << 10
SHARD_BYTES = 64 << 20
MOST_SHARD_IMAGES = 1024
MOST_CHUNK_IMAGES = 256
MOST_PARTS = 1 << 16
"""Layers of a model, heads of a layer, queries of another image: no number beyond it is one."""

MOST_PIXELS = 1 << 16
"""Height or width of a patch."""

MOST_PATCHES = 64
"""Patches of the grid for each token of a stage with explicit positions: a page lays out every row over all patches."""


@dataclass(frozen=True, slots=True)
class DatasetLayout:
    """One dataset of a stage.

    Attributes:
        name: a site, or one of `BESIDE`.
        shape: without the image axis: (layer, head, query, key), or as in `BESIDE`.
        chunk: with the image axis.
        stochastic, is_effective: as in `AttentionMaps`; False beside the maps.
    """

    name: str
    shape: tuple[int, ...]
    chunk: tuple[int, ...]
    stochastic: bool
    is_effective: bool

    def __post_init__(self) -> None:
        lengths, parts = self.shape, self.chunk[1:]
        fits = len(lengths) + 1 == len(self.axes) == len(self.chunk) and self.name in (*SITES, *BESIDE)
        if not fits or min(*lengths, *self.chunk) < 1 or any(c > n for c, n in zip(parts, lengths, strict=True)):
            raise ValueError(f"no dataset {self.name!r:.40} has shape {lengths!r:.80} and chunk {self.chunk!r:.80}")

    @property
    def axes(self) -> tuple[str, ...]:
        return BESIDE.get(self.name, MAP_AXES)

    def full_shape(self, n_images: int) -> tuple[int, ...]:
        return (n_images, *self.shape)

    def n_chunks(self, n_images: int) -> int:
        return math.prod(math.ceil(n / c) for n, c in zip(self.full_shape(n_images), self.chunk, strict=True))

    def corners(self) -> Iterator[tuple[int, ...]]:
        """Beginnings of the chunks of one row of images, on the axes after the image."""
        return product(*(range(0, n, step) for n, step in zip(self.shape, self.chunk[1:], strict=True)))


@dataclass(frozen=True, slots=True)
class StageLayout:
    """One stage: what its maps are, and its datasets. Fields as in `AttentionMaps`, its `Part` and `TokenGrid`."""

    name: str
    kind: str
    layers: tuple[str, ...]
    rows: int
    cols: int
    prefix: tuple[str, ...]
    patch: tuple[int, int]
    datasets: tuple[DatasetLayout, ...]
    kept_layers: tuple[int, ...] | None = None
    kept_heads: tuple[int, ...] | None = None
    kept_queries: tuple[int, ...] | None = None
    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not self.maps or not re.fullmatch(r"[^/.\0][^/\0]*", self.name) or not re.fullmatch(r"[\w -]+", self.kind):
            raise ValueError(f"stage {self.name!r:.40} must have maps, a kind, and a name without a slash")
        n_layers, n_heads, n_queries, n_keys = self.maps[0].shape
        most = n_keys if self.kind == "self" else MOST_PARTS
        for kept, n, end in ((self.kept_layers, n_layers, MOST_PARTS), (self.kept_heads, n_heads, MOST_PARTS),
                             (self.kept_queries, n_queries, most)):  # fmt: skip
            if kept is not None and (
                list(kept) != sorted({*kept}) or len(kept) != n or not 0 <= kept[0] <= kept[-1] < end
            ):
                raise ValueError(f"stage {self.name!r:.40} must name {n} ascending positions, got {kept!r:.80}")
        small = not self.rows or 0 < min(self.patch) <= max(self.patch) <= MOST_PIXELS
        if len(self.layers) not in (0, n_layers) or min(self.rows, self.cols, *self.patch) < 0 or not small:
            raise ValueError(f"stage {self.name!r:.40} must have {n_layers} layers, and a grid of patches")
        is_placed = self.kind == "self" or self.positions is not None
        too_sparse = self.positions is not None and self.rows * self.cols > MOST_PATCHES * n_keys
        if (is_placed and self.grid.n_tokens != n_keys) or too_sparse:
            raise ValueError(f"stage {self.name!r:.40} must have {n_keys} places of tokens, one for each key")

    @property
    def grid(self) -> TokenGrid:
        """Grid of its key tokens."""
        return TokenGrid(self.rows, self.cols, self.prefix, self.patch, self.positions)

    @property
    def dimensions(self) -> dict[str, int]:
        """Length of every axis but the image's, by name."""
        return {axis: n for d in self.datasets for axis, n in zip(d.axes[1:], d.shape, strict=True)}

    @property
    def maps(self) -> tuple[DatasetLayout, ...]:
        """The maps it has, weights first, also where these are made of queries and keys."""
        stored = tuple(d for d in self.datasets if d.name not in BESIDE)
        queries, keys = self.dataset("queries"), self.dataset("keys")
        if queries is None or keys is None:
            return stored
        shape = (*queries.shape[:-1], keys.shape[-2])
        return (DatasetLayout("weights", shape, (1, *shape), True, True), *stored)

    def dataset(self, name: str) -> DatasetLayout | None:
        """The dataset of that name, if it is stored."""
        return next((d for d in self.datasets if d.name == name), None)

    def at(self, site: str) -> DatasetLayout | None:
        """The maps of a site, stored or not."""
        return next((d for d in self.maps if d.name == site), None)


@dataclass(frozen=True, slots=True)
class Layout:
    """Decisions of the first batch: the shapes, the file's type, the images of one shard.

    Attributes:
        dtype: of every dataset in the file: bfloat16, float16 or float32.
        shard_images: images of one shard; shard k holds images k * shard_images and on.
        image_bytes: estimated stored bytes of one image.
    """

    dtype: str
    shard_images: int
    image_bytes: int
    stages: tuple[StageLayout, ...]

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if self.dtype not in ITEM_BYTES or self.shard_images < 1 or len(set(names)) < len(names):
            raise ValueError(f"dtype {self.dtype!r:.40}, {self.shard_images} images a shard, stages {names!r:.80}")


def chunk_shape(shape: tuple[int, ...], item_bytes: int, batch_images: int | None = None) -> tuple[int, ...]:
    """The chunk of a dataset whose axes after the image are `shape`: (layer, [head,] query, key).

    A chunk is the unit of reading, and each costs an index entry and a call. All heads of one layer of one
    image are read together, so that is a chunk, (1, 1, H, Q, K), unless it is
    - above 4 MiB: then it is cut, first between heads, then between queries;
    - below 64 kB: then it spans several layers, and if all of them are still below, several images, up to
      256 kB. Small models would otherwise pay more for the index than for the maps (17 tokens and 3 heads
      are 1.7 kB a layer): reading is slow, and deflate starts anew too often to find repeats.
    Images per chunk are a power of two, so that one shard size can suit every dataset, and divide `batch_images` if
    given, so that a shard of whole batches is one of whole chunks.
    """
    one_map = item_bytes * math.prod(shape[1:])
    if one_map >= SMALLEST_CHUNK:
        chunk = list(shape[1:])
        for axis in range(len(chunk) - 1):
            rest = item_bytes * math.prod(chunk[axis + 1 :])
            chunk[axis] = _even_part(chunk[axis], rest, LARGEST_CHUNK)
        return (1, 1, *chunk)
    layers = _even_part(shape[0], one_map, SEVERAL_MAPS)
    images = 1
    if layers == shape[0]:
        most = min(MOST_CHUNK_IMAGES, SEVERAL_MAPS // (layers * one_map))
        while 2 * images <= most and (batch_images or MOST_CHUNK_IMAGES) % (2 * images) == 0:
            images *= 2
    return (images, layers, *shape[1:])


def _even_part(length: int, unit_bytes: int, limit: int) -> int:
    """Cut `length` units into as few nearly equal parts as stay within `limit` bytes; units in the largest."""
    n_parts = math.ceil(length / max(1, limit // unit_bytes))
    return math.ceil(length / n_parts)


def shard_images(image_bytes: int, unit: int) -> int:
    """Images of a shard of about 64 MiB: at most 1024, and a whole number of `unit`, a batch or a chunk."""
    wanted = min(MOST_SHARD_IMAGES, max(1, SHARD_BYTES // max(1, image_bytes)))
    return max(unit, wanted // unit * unit)
