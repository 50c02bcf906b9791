"""How do stored maps come back, a bounded piece at a time?"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from attnprobe.core.errors import InputError, MapsFileError, did_you_mean
from attnprobe.core.maps import AttentionMaps, Outcome, TokenGrid
from attnprobe.core.tap import Site
from attnprobe.store import bits, hdf5, parts, structure
from attnprobe.store.layout import DatasetLayout, StageLayout
from attnprobe.store.plan import Pinned, read_plan
from attnprobe.store.seal import read_checked, verify

CHUNK_BYTES = 64 << 20
"""Largest `AttentionMaps` that iterating gives, in float32, if one image is not larger already."""


def open_maps(path: Path | str, *, allow_partial: bool = False, chunk_images: int | None = None) -> "MapReader":
    """Open NAME.h5, or a folder NAME.parts as if it were one file.

    Args:
        allow_partial: of an unfinished folder, read the shards that are there.
        chunk_images: images per `AttentionMaps` when iterating; by default what 64 MB hold.

    Raises:
        MapsFileError: missing, truncated, damaged, foreign, of a newer schema, or shards are missing.
    """
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, allow_partial, chunk_images)
    if not path.exists():
        file, folder = path.with_suffix(".h5"), parts.parts_of(path)
        hint = next((f" {p} is there: open that." for p in (file, folder) if p != path and p.exists()), "")
        raise MapsFileError(f"no maps at {path}.{hint or ' Make them with `attnprobe capture`.'}")
    found, data = read_checked(path)
    if found.part is not None:
        raise MapsFileError(f"{path} is shard {found.part} of a capture; open the folder {path.parent.parent}.")
    try:
        file = h5py.File(path if data is None else data, "r")
    except OSError as error:
        raise MapsFileError(f"{path} cannot be read: {error}. Restore it or capture again.") from None
    try:
        pinned = structure.check(file, path, found)
        ids = tuple(structure.read_ids(file))
        certificate = structure.read_certificate(file)
    except BaseException:
        file.close()
        raise
    return MapReader(path, pinned, ids, [_Piece(0, len(ids), None)], certificate, file, chunk_images)


def _open_folder(folder: Path, allow_partial: bool, chunk_images: int | None) -> "MapReader":
    pinned, ids, _ = read_plan(folder)
    numbers = parts.present(folder, pinned)
    missing = sorted(set(range(pinned.n_shards)) - set(numbers))
    if missing and not (allow_partial and numbers):
        raise MapsFileError(
            f"{folder} is unfinished: {len(missing)} of {pinned.n_shards} shards missing (the first is "
            f"{parts.shard_path(folder, missing[0]).name}). Run the same capture again to complete it"
            + (", or read what is there with allow_partial." if numbers else ".")
        )
    pieces, kept = [], []
    for number in numbers:
        positions = pinned.shard(number)
        pieces.append(_Piece(len(kept), len(positions), number))
        kept += ids[positions.start : positions.stop]
    return MapReader(folder, pinned, tuple(kept), pieces, parts.read_certificate(folder), None, chunk_images)


@dataclass(frozen=True, slots=True)
class _Piece:
    """Images `first` .. `first + n_images - 1` of a reader, in one HDF5 file; `number` is None if merged."""

    first: int
    n_images: int
    number: int | None


class MapReader:
    """The maps of one capture; made by `open_maps`.

    Iterating gives `AttentionMaps` of at most `chunk_images` images: for each run of images every stage, and of each
    stage every site, weights first. Values are float32. `len(reader)` is the number of images.

    Attributes:
        path: what was opened.
        attrs: what is known about the capture, as plain Python: model, variant, checkpoint_sha256, config,
            versions, data, seed, device, settings, created, certificate, n_images, complete, dtype.
        stages: names of the stages.
        image_ids: of the images that can be read, in order.
        complete: no image of the plan is missing.
    """

    def __init__(
        self,
        path: Path,
        pinned: Pinned,
        image_ids: tuple[str, ...],
        pieces: Sequence[_Piece],
        certificate: dict[str, Any],
        merged: h5py.File | None,
        chunk_images: int | None,
    ) -> None:
        self.path, self.image_ids = path, image_ids
        self._pinned, self._pieces = pinned, pieces
        self._open_file, self._open_number = merged, None
        self._layouts = {stage.name: stage for stage in pinned.layout.stages}
        self.stages = tuple(self._layouts)
        self.complete = len(image_ids) == pinned.n_images
        self.attrs = {**pinned.description(len(image_ids)), "certificate": certificate}
        self.chunk_images = chunk_images or self._usual_chunk()

    @property
    def n_images(self) -> int:
        return len(self.image_ids)

    @cached_property
    def outcome(self) -> Outcome:
        """What the model said about all images. Of a folder this reads every shard once."""
        return self._outcome(range(self.n_images))

    @property
    def labels(self) -> Tensor:
        """[image], the true class, -1 where unknown."""
        return self.outcome.labels

    @property
    def prediction(self) -> Tensor:
        """[image], the class with the largest logit, -1 where unknown."""
        return self.outcome.prediction

    @property
    def probability(self) -> Tensor:
        """[image], softmax probability of the prediction, NaN where unknown."""
        return self.outcome.probability

    def sites(self, stage: str | None = None) -> tuple[Site, ...]:
        """Sites stored for a stage (the first if None), weights first."""
        return tuple(d.name for d in self._stage(stage).maps)  # type: ignore[misc]

    def maps(
        self, stage: str | None = None, site: Site = "effective", images: slice | Sequence[int] = slice(None)
    ) -> AttentionMaps:
        """The maps of some images of a stage (the first if None), in the order asked for.

        Where the weights are what is multiplied with V, they are stored once and answer to both names.

        Raises:
            InputError: no such stage, site or image.
            MapsFileError: a shard is damaged or gone.
        """
        layout = self._stage(stage)
        dataset = layout.dataset(site)
        weights = layout.dataset("weights")
        if dataset is None and site == "effective" and weights is not None and weights.is_effective:
            dataset = weights
        if dataset is None or site == "tokens":
            known = did_you_mean(site, self.sites(stage))
            raise InputError(f"{self.path} has no {site!r} of stage {layout.name!r}.{known}")
        everything = range(self.n_images)
        try:
            positions = everything[images] if isinstance(images, slice) else [everything[i] for i in images]
        except IndexError:
            raise InputError(f"{self.path} has images 0 to {self.n_images - 1}, asked for {images}.") from None
        return self._maps(layout, dataset, positions, self._tokens(layout, positions), self._outcome(positions))

    def __iter__(self) -> Iterator[AttentionMaps]:
        for positions in self._runs():
            outcome = self._outcome(positions)
            for layout in self._layouts.values():
                tokens = self._tokens(layout, positions)
                for dataset in layout.maps:
                    yield self._maps(layout, dataset, positions, tokens, outcome)

    def __len__(self) -> int:
        return self.n_images

    def verify(self) -> None:
        """Hash every byte.

        Raises:
            MapsFileError: something is damaged or gone.
        """
        for piece in self._pieces:
            verify(self.path if piece.number is None else parts.shard_path(self.path, piece.number))

    def close(self) -> None:
        """Close what is open; reading opens it again if it is a folder."""
        if self._open_file is not None:
            self._open_file.close()
        self._open_file, self._open_number = None, None

    def __enter__(self) -> "MapReader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _usual_chunk(self) -> int:
        datasets = [dataset for _, dataset in structure.datasets(self._pinned)]
        largest = max(4 * int(np.prod(dataset.shape)) for dataset in datasets)
        together = max(dataset.chunk[0] for dataset in datasets)
        images = max(1, CHUNK_BYTES // max(1, largest))
        return max(images // together * together, min(images, together))

    def _runs(self) -> list[range]:
        """Positions of the images of each chunk; none spans two shards."""
        return [
            range(start, min(start + self.chunk_images, piece.first + piece.n_images))
            for piece in self._pieces
            for start in range(piece.first, piece.first + piece.n_images, self.chunk_images)
        ]

    def _stage(self, name: str | None) -> StageLayout:
        name = self.stages[0] if name is None else name
        if name not in self._layouts:
            raise InputError(f"{self.path} has no stage {name!r}.{did_you_mean(name, self.stages)}")
        return self._layouts[name]

    def _maps(
        self,
        stage: StageLayout,
        dataset: DatasetLayout,
        positions: Sequence[int],
        tokens: Tensor | None,
        outcome: Outcome,
    ) -> AttentionMaps:
        return AttentionMaps(
            self._values(stage, dataset, positions),
            tuple(self.image_ids[i] for i in positions),
            TokenGrid(stage.rows, stage.cols, stage.prefix, stage.patch),
            site=dataset.name,  # type: ignore[arg-type]
            is_effective=dataset.is_effective,
            stochastic=dataset.stochastic,
            layers=stage.layers,
            stage=stage.name,
            kind=stage.kind,
            tokens=tokens,
            outcome=outcome,
        )

    def _tokens(self, stage: StageLayout, positions: Sequence[int]) -> Tensor | None:
        dataset = stage.dataset("tokens")
        return None if dataset is None else self._values(stage, dataset, positions)

    def _values(self, stage: StageLayout, dataset: DatasetLayout, positions: Sequence[int]) -> Tensor:
        values = torch.empty(len(positions), *dataset.shape)
        dtype = getattr(torch, self._pinned.layout.dtype)
        for here, file, there in self._slices(positions):
            with self._readable():
                values[here] = bits.read(file[f"stages/{stage.name}/{dataset.name}"], there, dtype)
        return values

    def _outcome(self, positions: Sequence[int]) -> Outcome:
        columns = {name: np.empty(len(positions), dtype) for name, dtype in hdf5.OUTCOMES.items()}
        for here, file, there in self._slices(positions):
            with self._readable():
                for name, column in columns.items():
                    column[here] = file[f"images/{name}"][there]
        return Outcome(*(torch.from_numpy(columns[name]) for name in ("label", "prediction", "probability")))

    def _slices(self, positions: Sequence[int]) -> Iterator[tuple[slice, Any, slice]]:
        """Consecutive positions in one file: where they go, the file, where they are in it."""
        start = 0
        while start < len(positions):
            piece = next(p for p in self._pieces if p.first <= positions[start] < p.first + p.n_images)
            offset, end = positions[start] - piece.first, start + 1
            while end < len(positions) and positions[end] == positions[end - 1] + 1 < piece.first + piece.n_images:
                end += 1
            yield slice(start, end), self._file(piece), slice(offset, offset + end - start)
            start = end

    def _file(self, piece: _Piece) -> h5py.File:
        """The piece's file; of a folder one shard at a time is in memory."""
        if piece.number != self._open_number or self._open_file is None:
            if piece.number is None:
                raise InputError(f"{self.path} was closed; open it again.")
            self.close()
            self._open_file = parts.open_shard(self.path, piece.number, self._pinned.plan_id)
            self._open_number = piece.number
        return self._open_file

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError, ValueError, KeyError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            raise MapsFileError(f"{self.path} is damaged: {error}. Restore it or capture again.") from error
