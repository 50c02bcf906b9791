"""Stored maps as tensors, a bounded piece at a time."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from attnprobe.core.errors import InputError, did_you_mean
from attnprobe.core.maps import AttentionMaps, Outcome, Part
from attnprobe.core.sites import Site
from attnprobe.store import hdf5, structure
from attnprobe.store.layout import BESIDE, DatasetLayout, StageLayout
from attnprobe.store.stored import StoredMaps

CHUNK_BYTES = 64 << 20
"""Largest `AttentionMaps` that iterating gives, in float32, if one image is not larger already."""


def open_maps(path: Path | str, *, allow_partial: bool = False, chunk_images: int | None = None) -> "MapReader":
    """Open NAME.h5, or a folder NAME.parts as if it were one file; on this machine or by URL (s3://, gs://, hf://).

    Args:
        allow_partial: of an unfinished folder, read the shards that are there.
        chunk_images: images per `AttentionMaps` when iterating; by default what 64 MB hold.

    Raises:
        MapsFileError: missing, truncated, damaged, foreign, of a newer schema, or shards are missing.
    """
    reader = MapReader.open(path, allow_partial=allow_partial)
    reader.chunk_images = chunk_images or reader.chunk_images
    return reader


class MapReader(StoredMaps):
    """The maps of one capture as `AttentionMaps`; made by `open_maps`. What else it has is in `StoredMaps`.

    Iterating gives `AttentionMaps` of at most `chunk_images` images: for each run of images every stage, and of each
    stage every site, weights first. Values are float32. `len(reader)` is the number of images.
    """

    def __init__(self, *opened: Any) -> None:
        super().__init__(*opened)
        self.chunk_images = self._usual_chunk()

    @cached_property
    def outcome(self) -> Outcome:
        """Labels and predictions of all images; reads every shard once if they are in a folder."""
        return self._outcome(range(self.n_images))[0]

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
        dataset, weights = layout.at(site), layout.at("weights")
        if dataset is None and site == "effective" and weights is not None and weights.is_effective:
            dataset = weights
        if dataset is None:
            known = did_you_mean(site, self.sites(stage))
            raise InputError(f"{self.path} has no {site!r} of stage {layout.name!r}.{known}")
        everything = range(self.n_images)
        try:
            positions = everything[images] if isinstance(images, slice) else [everything[i] for i in images]
        except IndexError:
            raise InputError(f"{self.path} has images 0 to {self.n_images - 1}, asked for {images}.") from None
        return self._maps(layout, dataset, positions, self._extras(layout, positions), self._outcome(positions))

    def __iter__(self) -> Iterator[AttentionMaps]:
        for positions in self._runs():
            outcome = self._outcome(positions)
            for layout in self._layouts.values():
                extras = self._extras(layout, positions)
                for dataset in layout.maps:
                    yield self._maps(layout, dataset, positions, extras, outcome)

    def _usual_chunk(self) -> int:
        stored = (dataset for _, dataset in structure.datasets(self._pinned))
        datasets = [*stored, *(dataset for stage in self._layouts.values() for dataset in stage.maps)]
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

    def _maps(
        self,
        stage: StageLayout,
        dataset: DatasetLayout,
        positions: Sequence[int],
        extras: dict[str, Tensor],
        outcome: tuple[Outcome, Tensor | None],
    ) -> AttentionMaps:
        factors = (extras["queries"], extras["keys"]) if "queries" in extras else None
        made_of = factors if dataset.name == "weights" else None
        return AttentionMaps(
            self._values(stage, dataset, positions) if made_of is None else _softmax_of_product(*made_of),
            tuple(self.image_ids[i] for i in positions),
            stage.grid,
            site=dataset.name,  # type: ignore[arg-type]
            is_effective=dataset.is_effective,
            stochastic=dataset.stochastic,
            layers=stage.layers,
            part=Part(stage.kept_layers, stage.kept_heads, stage.kept_queries),
            stage=stage.name,
            kind=stage.kind,
            tokens=extras.get("tokens"),
            value_vectors=extras.get("values"),
            factors=factors,
            outcome=outcome[0],
            pixels=outcome[1],
        )

    def _extras(self, stage: StageLayout, positions: Sequence[int]) -> dict[str, Tensor]:
        datasets = (stage.dataset(name) for name in BESIDE)
        return {dataset.name: self._values(stage, dataset, positions) for dataset in datasets if dataset is not None}

    def _values(self, stage: StageLayout, dataset: DatasetLayout, positions: Sequence[int]) -> Tensor:
        values = torch.empty(len(positions), *dataset.shape)
        dtype = getattr(torch, self._pinned.layout.dtype)
        for here, file, there in self._slices(positions):
            start, shape = (there.start, *(0,) * len(dataset.shape)), dataset.full_shape(there.stop - there.start)
            with self._readable():
                words = hdf5.read_words(file[f"stages/{stage.name}/{dataset.name}"], start, shape)
                values[here] = torch.from_numpy(words).view(dtype)
        return values

    def _outcome(self, positions: Sequence[int]) -> tuple[Outcome, Tensor | None]:
        """Labels and predictions of images, and the hashes of their pixels, if these are known."""
        columns = self._outcome_columns(positions)
        told = (torch.from_numpy(columns[name]) for name in ("label", "prediction", "probability"))
        outcome = Outcome(*told, n_classes=len(self.attrs.get("config", {}).get("class_names") or ()))
        return outcome, torch.from_numpy(columns["pixels"]) if columns["pixels"].any() else None


def _softmax_of_product(queries: Tensor, keys: Tensor) -> Tensor:
    """[image, layer, head, query, key], one layer at a time: several times faster than all at once."""
    maps = queries.new_empty(*queries.shape[:-1], keys.shape[-2])
    for place in np.ndindex(*queries.shape[:2]):
        torch.softmax(queries[place] @ keys[place].mT, -1, out=maps[place])
    return maps
