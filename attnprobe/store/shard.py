"""The bytes of a shard, made from the maps of one run of images."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnprobe.core.maps import AttentionMaps
from attnprobe.store import hdf5
from attnprobe.store.filters import checked, shuffled_deflated
from attnprobe.store.layout import DatasetLayout, StageLayout
from attnprobe.store.memory import Memory
from attnprobe.store.plan import Pinned
from attnprobe.store.seal import BLOCK, seal_shard

Corner = tuple[int, ...]
"""Beginning of a chunk, on the axes after the image."""

WORDS = {2: torch.uint16, 4: torch.uint32}
"""Types of bit patterns, in which values pass through NumPy, which has no bfloat16."""


def encoded(
    layout: DatasetLayout, values: Tensor, dtype: torch.dtype, corners: Iterable[Corner]
) -> Iterator[tuple[Corner, bytes]]:
    """The chunks that begin at `corners`, of one row of images, compressed."""
    if values.device.type != "cpu":
        values = values.to(dtype).cpu()
    for corner in corners:
        inner = tuple(slice(start, start + n) for start, n in zip(corner, layout.chunk[1:], strict=True))
        part = values[(slice(None), *inner)].to(dtype)  # chunk by chunk: it stays in the cache
        chunk = part.detach().contiguous().view(WORDS[dtype.itemsize]).numpy()
        if chunk.shape != layout.chunk:  # at the edge a chunk still has its full size in the file
            chunk = np.pad(chunk, [(0, full - n) for full, n in zip(layout.chunk, chunk.shape, strict=True)])
        yield corner, checked(shuffled_deflated(chunk))


def tensors(
    maps: Sequence[AttentionMaps], stages: Sequence[StageLayout]
) -> Iterator[tuple[str, DatasetLayout, Tensor]]:
    """Path in the file, layout and tensor of every dataset. Extras come from a stage's first maps."""
    for stage in stages:
        sites = {m.site: m for m in maps if m.stage == stage.name}
        for layout in stage.datasets:
            first = next(iter(sites.values()))
            queries, keys = first.factors or (None, None)
            extras = {"tokens": first.tokens, "values": first.value_vectors, "queries": queries, "keys": keys}
            values = extras[layout.name] if layout.name in extras else sites[layout.name].values
            assert values is not None, "the layout was made from such maps"
            yield f"stages/{stage.name}/{layout.name}", layout, values


class Shard:
    """Shard `number` of a plan, filled image by image in `memory`; libhdf5 never touches the disk here.

    Images that do not fill a chunk yet wait, already in the file's type, for those that follow.
    """

    def __init__(self, pinned: Pinned, ids: Sequence[str], labels: Sequence[int], number: int, memory: Memory) -> None:
        self.pinned, self.number = pinned, number
        self.positions = pinned.shard(number)
        self._n = len(self.positions)
        self._added = 0
        self._dtype = getattr(torch, pinned.layout.dtype)
        self._waiting: dict[str, Tensor] = {}
        self._outcomes = {name: np.full(self._n, hdf5.UNKNOWN[name], hdf5.OUTCOMES[name]) for name in hdf5.OUTCOMES}
        here = slice(self.positions.start, self.positions.stop)
        self._has_labels = bool(labels)
        if labels:
            self._outcomes["label"][:] = labels[here]
        self._memory = memory.empty()
        self._file: Any = hdf5.create(memory, pinned, ids[here], self.positions.start)

    @property
    def full(self) -> bool:
        return self._added == self._n

    def add(self, maps: Sequence[AttentionMaps]) -> None:
        """The next images: all their maps, of every stage and site."""
        here = slice(self._added, self._added + maps[0].n_images)
        pixels = next((m.pixels for m in maps if m.pixels is not None), None)
        if pixels is not None:
            self._outcomes["pixels"][here] = pixels.numpy()
        outcome = next((m.outcome for m in maps if m.outcome is not None), None)
        if outcome is not None:
            self._outcomes["prediction"][here] = outcome.prediction.cpu().numpy()
            self._outcomes["probability"][here] = outcome.probability.detach().float().cpu().numpy()
            if not self._has_labels:
                self._outcomes["label"][here] = outcome.labels.cpu().numpy()
        for path, layout, values in tensors(maps, self.pinned.layout.stages):
            self._add(path, layout, values)
        self._added += maps[0].n_images

    def _add(self, path: str, layout: DatasetLayout, values: Tensor) -> None:
        step = layout.chunk[0]
        begin = self._added
        if path in self._waiting:
            waiting = self._waiting.pop(path)
            begin -= len(waiting)
            values = torch.cat([waiting, values.detach().to("cpu", self._dtype)])
        last = begin + len(values) == self._n
        whole = len(values) if last else len(values) // step * step
        for start in range(0, whole, step):
            row = values[start : min(start + step, whole)]
            for corner, data in encoded(layout, row, self._dtype, layout.corners()):
                self._file[path].id.write_direct_chunk((begin + start, *corner), data)
        if whole < len(values):
            self._waiting[path] = values[whole:].detach().to("cpu", self._dtype, copy=True)

    def finish(self) -> memoryview:
        """The bytes of the finished file, sealed.

        The seal is made in memory: its hash is of what was written, and not of what a disk gave back.
        """
        assert self.full and not self._waiting, "a shard is finished once, when all its images are in"
        for name, column in self._outcomes.items():
            self._file[f"images/{name}"][:] = column
        for stage in self.pinned.layout.stages:
            for layout in stage.datasets:
                dataset = self._file[f"stages/{stage.name}/{layout.name}"]
                assert dataset.id.get_num_chunks() == layout.n_chunks(self._n), "every chunk is written"
        self._file.close()
        data = self._memory.content()
        data[:BLOCK] = seal_shard(self.pinned.plan_id, self.number, data).block()
        return data

    def close(self) -> None:
        """Forget an unfinished shard."""
        self._file.close()
