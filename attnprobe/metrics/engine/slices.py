"""Measurements of images, slice by slice, so that any number of processes can share them and any stop costs little.

Images come in slices of fixed size. What every metric says of each image of a slice is a small file; all slices
together, in order, are what `measure` would have collected, so the measurements are equal bit for bit, whoever measured
which slice and when.
"""

import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from typing import Any

import numpy as np
import torch

from attnprobe.core.errors import InputError
from attnprobe.core.grid import TokenGrid
from attnprobe.core.maps import AttentionMaps, Part, uniform_maps
from attnprobe.core.measurement import Measurements
from attnprobe.core.metric import Metric
from attnprobe.io.config import from_mapping
from attnprobe.metrics.engine.answers import Answers
from attnprobe.metrics.engine.choose import choose
from attnprobe.metrics.engine.collect import NAMED, Place, collect
from attnprobe.metrics.engine.collected import KEEP_BYTES, Collected
from attnprobe.metrics.engine.folding import Folding
from attnprobe.metrics.engine.measure import summarise
from attnprobe.metrics.engine.sums import Moments, Resampled


@dataclass(slots=True)
class Skipped:
    """Images of a slice that could not be read: their number, and the names of the first."""

    n: int = 0
    names: list[str] = field(default_factory=list)

    def add(self, names: Sequence[str], n: int | None = None) -> None:
        """Add some more, of which these are the first."""
        self.n += len(names) if n is None else n
        self.names.extend(names[: NAMED - len(self.names)])

    def in_words(self) -> str:
        """A sentence for the report; empty if there is none."""
        if not self.n:
            return ""
        more = f" and {self.n - len(self.names)} more" if self.n > len(self.names) else ""
        what = "image cannot be read and is" if self.n == 1 else "images cannot be read and are"
        return f"{self.n} {what} left out: {', '.join(self.names)}{more}."


def measure_slice(
    chunks: Iterable[AttentionMaps],
    metrics: Sequence[Metric | str] | None = None,
    folding: Folding | None = None,
    skipped: Skipped | None = None,
) -> bytes:
    """Values of every metric for each of these images, as the bytes of an .npz file; arguments as in `measure`.

    Args:
        folding: rule by which values are folded into sums, where the images of all slices are too many to keep each.
        skipped: is filled while the chunks are read.
    """
    chunks = iter(chunks)
    first = next(chunks, None)
    skipped = skipped or Skipped()
    answers = Answers()
    if first is None and skipped.n:  # nothing but images that cannot be read
        return _written([], skipped, answers)
    start = [] if first is None else [first]
    del first  # its memory is free for the next one
    maps = answers.counted(chain(_popped(start), chunks))
    return _written(collect(maps, choose(metrics)[0], folding), skipped, answers)


def _popped(maps: list[AttentionMaps]) -> Iterator[AttentionMaps]:
    while maps:
        yield maps.pop()


def merge_slices(slices: Iterable[bytes]) -> bytes:
    """One slice of the images of several that follow one another, of folded values."""
    skipped, answers = Skipped(), Answers()
    return _written(_places(slices, skipped, answers), skipped, answers)


def _written(places: Sequence[Place], skipped: Skipped, answers: Answers) -> bytes:
    arrays = {"answers": np.frombuffer(json.dumps(asdict(answers)).encode(), np.uint8)}
    if skipped.n:
        arrays["skipped"] = np.frombuffer(json.dumps(asdict(skipped)).encode(), np.uint8)
    for i, place in enumerate(places):
        for name, collected in place.collected.items():
            values = collected.per_image
            if values is not None:
                arrays[f"{i}/{name}"] = values
            elif not collected.folded or collected.moments().mean.nbytes > KEEP_BYTES:
                raise InputError(f"metric {name!r} has too many values for a slice of {collected.n_images} images.")
            if place.n_units is not None:
                arrays |= {f"{i}/{name}/{part}": sums for part, sums in _sums(collected).items()}
    about = json.dumps([_about(place) for place in places])
    buffer = io.BytesIO()
    folded = any(place.n_units is not None for place in places)
    save: Any = np.savez if folded else np.savez_compressed  # sums of doubles do not get smaller
    save(buffer, allow_pickle=False, about=np.frombuffer(about.encode(), np.uint8), **arrays)
    return buffer.getvalue()


def _sums(collected: Collected) -> dict[str, np.ndarray]:
    moments, resampled = collected.moments(), collected.resampled
    sums = {"n": moments.n, "mean": moments.mean, "m2": moments.m2}
    return sums if resampled is None else {**sums, "total": resampled.total, "weight": resampled.weight}


def _collected(about: Mapping[str, Any], i: int, name: str, arrays: Any) -> Collected:
    """What a slice says of one metric; its parts are `_sums` where values were folded."""
    kept = arrays[f"{i}/{name}"] if f"{i}/{name}" in arrays.files else None
    if about.get("n_units") is None:
        assert kept is not None, "what is not folded is kept"
        collected = Collected()
        collected.add(kept)
        return collected
    n, mean, m2 = (arrays[f"{i}/{name}/{part}"] for part in ("n", "mean", "m2"))
    drawn = [arrays[f"{i}/{name}/{part}"] for part in ("total", "weight") if f"{i}/{name}/{part}" in arrays.files]
    resampled = Resampled(*drawn) if drawn else None
    return Collected.of(about["n_images"], about["n_excluded"][name], kept, Moments(n, mean, m2), resampled)


def _about(place: Place) -> dict[str, Any]:
    like = place.uniform
    about = {
        "stage": place.stage,
        "site": place.site,
        "is_effective": place.is_effective,
        "stochastic": place.stochastic,
        "refusals": place.refusals,
        "image_ids": place.image_ids,
        "not_finite": place.not_finite,
        "pixels": place.pixels,
        "shape": list(like.values.shape[1:]),
        "layers": list(like.layers),
        "kind": like.kind,
        "grid": asdict(like.grid),
        "part": asdict(like.part),
    }
    if place.n_units is None:
        return about
    n_excluded = {name: collected.n_excluded for name, collected in place.collected.items()}
    n_images = max((collected.n_images for collected in place.collected.values()), default=0)
    return {**about, "n_units": place.n_units, "n_images": n_images, "n_excluded": n_excluded}


def measure_slices(
    slices: Iterable[bytes],
    metrics: Sequence[Metric | str] | None = None,
    *,
    baselines: Mapping[str, Iterable[bytes]] | None = None,
    group: str | None = None,
) -> Measurements:
    """The result of `measure`, from the bytes that `measure_slice` gave, in order; `metrics` must be the same."""
    wanted, required = choose(metrics)
    others = {name: _places(parts) for name, parts in (baselines or {}).items()}
    return summarise(_places(slices), wanted, required, others, group=group)


def layers_and_grid(data: bytes) -> tuple[tuple[str, ...], TokenGrid] | None:
    """Names of the layers and the tokens of the first stage of a slice; None if none of its images could be read."""
    abouts, _ = _read(data)
    if not abouts:
        return None
    like = _place(abouts[0]).uniform
    return like.layers, like.grid


def images_of(data: bytes) -> tuple[list[str], int, Skipped]:
    """Ids of the images of a slice whose values are kept, in order; the number of all; those that were skipped."""
    abouts, arrays = _read(data)
    about: dict[str, Any] = abouts[0] if abouts else {"image_ids": []}
    return about["image_ids"], about.get("n_images", len(about["image_ids"])), _skipped(arrays)


def _skipped(arrays: Any) -> Skipped:
    return Skipped(**json.loads(arrays["skipped"].tobytes())) if "skipped" in arrays.files else Skipped()


def answers_of(slices: Iterable[bytes]) -> Answers:
    """The model's answers on the images of all slices, counted."""
    answers = Answers()
    for data in slices:
        answers.add(_answers(_read(data)[1]))
    return answers


def _answers(arrays: Any) -> Answers:
    if "answers" not in arrays.files:  # 0.1.0 did not count them
        return Answers(whole=False)
    return from_mapping(Answers, json.loads(arrays["answers"].tobytes()), source="answers of a slice")


def _read(data: bytes) -> tuple[list[dict[str, Any]], Any]:
    """Facts (`_about`) of each place of a slice, and its arrays, read when they are asked for."""
    arrays = np.load(io.BytesIO(data), allow_pickle=False)
    return json.loads(arrays["about"].tobytes()), arrays


def _places(slices: Iterable[bytes], skipped: Skipped | None = None, answers: Answers | None = None) -> list[Place]:
    places: dict[tuple[str, str], Place] = {}
    for abouts, arrays in map(_read, slices):
        if skipped is not None:
            its = _skipped(arrays)
            skipped.add(its.names, its.n)
        if answers is not None:
            answers.add(_answers(arrays))
        for i, about in enumerate(abouts):
            place = places.setdefault((about["stage"], about["site"]), _place(about))
            place.image_ids.extend(about["image_ids"])
            place.pixels.extend(about.get("pixels", [0] * len(about["image_ids"])))  # 0.1.0 did not note them
            place.not_finite.extend(about["not_finite"][: NAMED - len(place.not_finite)])
            parts = [key.split("/") for key in arrays.files if key.startswith(f"{i}/")]
            for name in dict.fromkeys(part[1] for part in parts):
                found = _collected(about, i, name, arrays)
                if name in place.collected:
                    place.collected[name].merge(found)
                else:
                    place.collected[name] = found
    return list(places.values())


def _place(about: dict[str, Any]) -> Place:
    """One with nothing in it yet."""
    like = AttentionMaps(
        torch.empty(1).expand(1, *about["shape"]),
        ("uniform",),
        from_mapping(TokenGrid, about["grid"]),
        layers=tuple(about["layers"]),
        stage=about["stage"],
        kind=about["kind"],
        part=from_mapping(Part, about["part"]),
    )
    names = ("stage", "site", "is_effective", "stochastic", "refusals")
    empty: dict[str, Any] = {"collected": {}, "image_ids": [], "not_finite": [], "pixels": []}
    return Place(
        **{name: about[name] for name in names}, uniform=uniform_maps(like), **empty, n_units=about.get("n_units")
    )
