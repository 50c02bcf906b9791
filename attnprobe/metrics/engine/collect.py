"""A stream of attention maps through the metrics: what was collected at each site of each stage."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, islice

import numpy as np
import torch
from torch import Tensor

from attnprobe.core.devices import exact_products, with_float64
from attnprobe.core.errors import InputError, ShapeError
from attnprobe.core.maps import AttentionMaps, uniform_maps
from attnprobe.core.metric import Metric
from attnprobe.core.sharing import sharing
from attnprobe.core.sites import Site
from attnprobe.metrics.engine.collected import Collected, maps_not_finite
from attnprobe.metrics.engine.folding import Folding

PIECE_BYTES = 16 * 2**20
"""Size of the maps that go through a metric at once on a CPU, in float32; its temporaries are as large."""

ROWS_OFF = 0.02
"""Largest error of a row sum from rounding to bfloat16 or float16."""

NAMED = 3
"""Maps that are not finite are named up to this many."""


@dataclass(frozen=True, slots=True)
class Place:
    """Values of all metrics at one site of one stage; `uniform` has the shape, grid and kind of its maps.

    Where values are folded, `image_ids` and `pixels` are of the images that are kept, and `n_units` is the number of
    images, or groups of them, of the whole run; else it is None. `together` and `numbers`: the stages that its blocks
    are numbered with, and their numbers, if there are several; see `Measurement.together`. `network`: as there.
    """

    stage: str
    site: Site
    is_effective: bool
    stochastic: bool
    uniform: AttentionMaps
    refusals: dict[str, str]
    collected: dict[str, Collected]
    image_ids: list[str]
    not_finite: list[str]
    pixels: list[int]
    n_units: int | None = None
    together: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    network: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, maps: AttentionMaps, metrics: Sequence[Metric], n_units: int | None = None) -> "Place":
        refusals = {metric.name: metric.refusal(maps) for metric in metrics}
        collected = {name: Collected() for name, refusal in refusals.items() if not refusal}
        about = (maps.stage, maps.site, maps.is_effective, maps.stochastic)
        return cls(*about, uniform_maps(maps), refusals, collected, [], [], [], n_units)

    def check_same(self, maps: AttentionMaps) -> None:
        """Raises ShapeError if these maps cannot be averaged with the earlier ones."""
        earlier = (tuple(self.uniform.values.shape[1:]), self.uniform.grid, self.stochastic, self.is_effective)
        now = (tuple(maps.values.shape[1:]), maps.grid, maps.stochastic, maps.is_effective)
        if earlier != now:
            raise ShapeError(
                f"all {self.stage} maps at site {self.site!r} must be alike: (layer, head, query, key), grid, "
                f"stochastic and is_effective were {earlier}, now {now}. Measure different models one by one."
            )


def collect(chunks: Iterable[AttentionMaps], metrics: Sequence[Metric], folding: Folding | None = None) -> list[Place]:
    """Values of every metric over all chunks, by stage and site; folded into sums by a rule, if one is given."""
    places: dict[tuple[str, Site], Place] = {}
    for chunk in chunks:
        if chunk.n_images == 0:
            continue
        place = places.get((chunk.stage, chunk.site))
        if place is None:
            seen = {name for other in places.values() if other.stage == chunk.stage for name in other.collected}
            new = [metric for metric in metrics if "maps" in metric.parameters or metric.name not in seen]
            place = places[chunk.stage, chunk.site] = Place.of(chunk, new, folding and folding.n_units)
            _check_rows(chunk)
        place.check_same(chunk)
        draw = folding and folding.draw(chunk.image_ids)
        pixels = [0] * chunk.n_images if chunk.pixels is None else chunk.pixels.tolist()
        place.image_ids.extend(chunk.image_ids if draw is None else compress(chunk.image_ids, draw.kept))
        place.pixels.extend(pixels if draw is None else compress(pixels, draw.kept))
        suited = [metric for metric in metrics if metric.name in place.collected]
        with torch.inference_mode():
            start = 0
            for piece in _pieces(chunk):
                its = draw and draw.images(start, start + piece.n_images)
                start += piece.n_images
                with sharing():
                    whole = [place.collected[metric.name].add(values_of(metric, piece), its) for metric in suited]
                if suited and not (finite := np.logical_and.reduce(whole)).all():
                    place.not_finite.extend(islice(maps_not_finite(piece, ~finite), NAMED - len(place.not_finite)))
            del piece
        del chunk  # its memory is free for the next one, which is computed when the loop asks for it
    if not places:
        raise InputError("no attention maps to measure: the stream of chunks was empty.")
    return list(places.values())


def _check_rows(maps: AttentionMaps) -> None:
    """Raises InputError if maps that are called stochastic are not, by the first image; what is not finite may be."""
    if not maps.stochastic:
        return
    for layer in maps.values[0]:
        sums = layer.sum(-1, dtype=torch.float32)
        known = sums.isfinite()
        if not known.any():
            continue
        low, high, smallest = (float(x) for x in (*sums[known].aminmax(), layer.amin(-1)[known].min()))
        if low < 1 - ROWS_OFF or high > 1 + ROWS_OFF or smallest < -ROWS_OFF:
            raise InputError(
                f"rows of the {maps.stage} maps at site {maps.site!r} must be non-negative and sum to 1: they sum to "
                f"{low:.3g} to {high:.3g}, and the smallest entry is {smallest:.3g}. If they are not what a softmax "
                "returned, pass AttentionMaps(..., stochastic=False)."
            )


def _pieces(maps: AttentionMaps) -> Iterator[AttentionMaps]:
    """The maps in working precision, where there is float64; a few images at a time on a CPU."""
    wide = maps.values.dtype == torch.float64
    bytes_per_image = maps.values[0].numel() * (8 if wide else 4)
    on_cpu = with_float64(maps.values.device).type == "cpu"
    step = max(1, PIECE_BYTES // bytes_per_image) if on_cpu else maps.n_images
    for start in range(0, maps.n_images, step):
        yield maps.images(start, min(start + step, maps.n_images)).mapped(_working)


def _working(tensor: Tensor) -> Tensor:
    tensor = tensor.to(with_float64(tensor.device))
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def values_of(metric: Metric, piece: AttentionMaps) -> np.ndarray:
    """[image, *axes] on the host, in memory of its own; in the maps' precision, also under autocast or TF32."""
    with torch.autocast(piece.values.device.type, enabled=False), exact_products():
        values = metric.per_image(piece)
    shaped = values.ndim == 1 + len(metric.axes) or metric.from_mean is not None
    if not shaped or len(values) != piece.n_images:
        raise ShapeError(
            f"metric {metric.name!r} must return [image, {', '.join(metric.axes)}] for {piece.n_images} images, "
            f"got {tuple(values.shape)}."
        )
    return _working(values).cpu().numpy().copy()
