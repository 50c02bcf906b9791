"""The maps in a file or a folder of shards, one layer at a time, without torch: see `core.browse`."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import h5py
import numpy as np

from attnprobe.core.browse import Numbered, StageShape, numbered
from attnprobe.core.errors import InputError, MapsFileError, did_you_mean, nearest
from attnprobe.core.text import Shown
from attnprobe.io import fs
from attnprobe.io.remote import place
from attnprobe.store import hdf5, parts, structure
from attnprobe.store.layout import StageLayout
from attnprobe.store.opening import checking, open_hdf5
from attnprobe.store.plan import CapturePlan, Pinned, read_plan
from attnprobe.store.seal import read_checked, verify


@dataclass(frozen=True, slots=True)
class Piece:
    """Images `first` .. `first + n_images - 1` of what was opened, in one HDF5 file; `number` is None if merged."""

    first: int
    n_images: int
    number: int | None


class StoredMaps(Shown):
    """The maps of one capture, checked and open; made by `StoredMaps.open`.

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
        pieces: Sequence[Piece],
        certificate: Any,
        merged: h5py.File | None,
    ) -> None:
        if not pinned.layout.stages:
            raise MapsFileError(f"{path} has no stage, so it holds no maps. Capture again.")
        self.path, self.image_ids = path, image_ids
        self._pinned, self._pieces = pinned, pieces
        self._open_file, self._open_number = merged, None
        self._layouts = {stage.name: stage for stage in pinned.layout.stages}
        self.stages = tuple(self._layouts)
        self.complete = len(image_ids) == pinned.n_images
        self.attrs = {**pinned.description(len(image_ids)), "certificate": _certificate(path, certificate)}

    @classmethod
    def open(cls, path: Path | str, *, allow_partial: bool = False) -> Self:
        """Open NAME.h5, or a folder NAME.parts as if it were one file; on this machine or by URL.

        Args:
            allow_partial: of an unfinished folder, read the shards that are there.

        Raises:
            MapsFileError: missing, truncated, damaged, foreign, of a newer schema, or shards are missing.
        """
        path = place(path)
        if path.is_dir():
            return cls._open_folder(path, allow_partial)
        if not path.exists():
            file, folder = path.with_suffix(".h5"), parts.parts_of(path)
            hint = next((f" {p} is there: open that." for p in (file, folder) if p != path and p.exists()), "")
            near = "" if hint else nearest(path.name, [n for n in fs.beside(path) if n.endswith((".h5", ".parts"))])
            raise MapsFileError(f"no maps at {path}.{hint or ' Make them with `attnprobe capture`.'}{near}")
        seal, data = read_checked(path)
        if seal.part is not None:
            raise MapsFileError(f"{path} is shard {seal.part} of a capture; open the folder {path.parent.parent}.")
        file = open_hdf5(path, data)
        with checking(path, file):
            pinned = structure.check(file, path, seal)
            ids = tuple(structure.read_ids(file))
            certificate = structure.read_certificate(file)
        return cls(path, pinned, ids, [Piece(0, len(ids), None)], certificate, file)

    @classmethod
    def _open_folder(cls, folder: Path, allow_partial: bool) -> Self:
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
            pieces.append(Piece(len(kept), len(positions), number))
            kept += ids[positions.start : positions.stop]
        return cls(folder, pinned, tuple(kept), pieces, parts.read_certificate(folder), None)

    def facts(self) -> dict[str, object]:
        """Model, images and stages, for notebook and terminal."""
        axes = ("blocks", "heads", "queries", "keys")
        stages = {
            f"stage {stage.name}": f"{stage.kind}: "
            + ", ".join(f"{n} {axis}" for n, axis in zip(stage.maps[0].shape, axes, strict=True))
            + f"; {', '.join(dataset.name for dataset in stage.datasets)}"
            for stage in self._layouts.values()
        }
        missing = self._pinned.n_images - self.n_images
        return {
            "model": self.attrs.get("model", "unknown"),
            "images": f"{self.n_images}{f', {missing} missing' if missing else ''}",
            **stages,
            "stored as": self._pinned.layout.dtype,
            "proof": f"of {len(self.attrs['certificate'].get('layers', ()))} layers, in .attrs['certificate']",
        }

    @property
    def _title(self) -> str:
        return f"maps of {self.path}"

    def is_of(self, plan: CapturePlan) -> bool:
        """True if this is what the plan asks for."""
        return self._pinned.asked == plan.facts()

    @property
    def n_images(self) -> int:
        return len(self.image_ids)

    def __len__(self) -> int:
        return self.n_images

    def shapes(self) -> tuple[StageShape, ...]:
        """Every stage."""
        numbers = numbered({
            stage.name: (
                stage.kind,
                (stage.grid, stage.maps[0].shape[2:]),
                () if stage.kept_layers is not None else stage.layers,
            )
            for stage in self._layouts.values()
        })  # fmt: skip
        found = []
        for stage in self._layouts.values():
            *lengths, keys = stage.maps[0].shape
            kept = (stage.kept_layers, stage.kept_heads, stage.kept_queries)
            layers, heads, queries = (
                tuple(range(n)) if some is None else some for n, some in zip(lengths, kept, strict=True)
            )
            layers, heads = (tuple(i + 1 for i in some) for some in (layers, heads))
            its = numbers.get(stage.name, Numbered())
            layers = its.network.get(stage.name) or its.numbers or layers
            n_blocks = sum(map(len, its.network.values())) or sum(len(numbers[name].numbers) for name in its.together)
            sites = tuple((d.name, d.stochastic) for d in stage.maps)
            found.append(StageShape(stage.name, stage.kind, layers, heads, queries, keys, stage.grid, sites, n_blocks))
        return tuple(found)

    def layer(self, stage: str, site: str, image: int, layer: int) -> np.ndarray:
        """[head, query, key], float32: one layer of one image, and nothing else is read.

        Raises:
            InputError: no such stage, site, image or layer.
            MapsFileError: a shard is damaged or gone.
        """
        layout = self._stage(stage).at(site)
        if layout is None:
            raise InputError(f"{self.path} has no {site!r} of stage {stage!r}.")
        if not (0 <= image < self.n_images and 0 <= layer < layout.shape[0]):
            raise InputError(f"{self.path} has no image {image} or no layer {layer} of stage {stage!r}.")
        ((_, file, there),) = self._slices([image])
        place, dtype = (there.start, layer), self._pinned.layout.dtype
        with self._readable():
            if self._stage(stage).dataset(site) is None:
                return _softmax_of_product(*(file[f"stages/{stage}/{name}"][place] for name in ("queries", "keys")))
            return _float32(file[f"stages/{stage}/{site}"], place, dtype)

    def told(self, image: int) -> tuple[int, int, float]:
        """Label, prediction and its probability of one image; -1 and NaN where unknown."""
        columns = self._outcome_columns([image])
        return int(columns["label"][0]), int(columns["prediction"][0]), float(columns["probability"][0])

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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _stage(self, name: str | None) -> StageLayout:
        name = self.stages[0] if name is None else name
        if name not in self._layouts:
            raise InputError(f"{self.path} has no stage {name!r}.{did_you_mean(name, self.stages)}")
        return self._layouts[name]

    def _outcome_columns(self, positions: Sequence[int]) -> dict[str, np.ndarray]:
        columns = {name: np.full(len(positions), hdf5.UNKNOWN[name], dtype) for name, dtype in hdf5.OUTCOMES.items()}
        for here, file, there in self._slices(positions):
            with self._readable():
                for name, column in columns.items():
                    if name in file["images"] or name not in hdf5.ADDED:
                        column[here] = file[f"images/{name}"][there]
        return columns

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

    def _file(self, piece: Piece) -> h5py.File:
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


def _certificate(path: Path, certificate: Any) -> Mapping[str, Any]:
    """A certificate as reports show it; none, with a warning, of one that is damaged: the maps are read without it."""
    try:
        if not isinstance(certificate, Mapping):
            raise TypeError(f"got {type(certificate).__name__}")
        layers = certificate.get("layers") or ()
        errors = [layer[name] for layer in layers for name in ("row_sum_error", "value_error")]
        errors.append(certificate.get("fused_difference"))
        if not all(error is None or isinstance(error, int | float) for error in errors):
            raise TypeError("an error is no number")
        equal, n_images = certificate.get("output_equal"), certificate.get("n_images", 0)
        if not (equal is None or isinstance(equal, bool)) or not isinstance(n_images, int):
            raise TypeError("output_equal or n_images is of another type")
    except (TypeError, LookupError) as error:
        warnings.warn(f"{path}: its certificate is damaged ({error}), so it counts as none.", stacklevel=2)
        return {}
    return certificate


def _float32(dataset: h5py.Dataset, place: tuple[int, int], dtype: str) -> np.ndarray:
    """One layer of one image; bfloat16 is the upper half of a float32."""
    if dtype != "bfloat16":
        return dataset[place].astype(np.float32, copy=False)
    words = hdf5.read_words(dataset, (*place, 0, 0, 0), (1, 1, *dataset.shape[2:]))[0, 0]
    return (words.astype(np.uint32) << 16).view(np.float32)


def _softmax_of_product(queries: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """[head, query, width], [head, key, width] -> [head, query, key]."""
    from scipy.special import softmax  # takes a third of a second, and few files hold queries and keys

    return softmax(queries @ keys.swapaxes(-1, -2), -1)
