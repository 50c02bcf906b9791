"""Measurements of a stream of attention maps: mean, interval, baselines and summary of every metric."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from attnprobe.core.browse import numbered
from attnprobe.core.errors import InputError, ShapeError
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.measurement import Key, Measurement, Measurements
from attnprobe.core.metric import Metric
from attnprobe.core.sharing import sharing
from attnprobe.metrics.engine.answers import Answers
from attnprobe.metrics.engine.choose import choose
from attnprobe.metrics.engine.collect import Place, collect, values_of
from attnprobe.metrics.engine.collected import Collected
from attnprobe.metrics.engine.units import Units, with_units
from attnprobe.stats.bootstrap import (
    centred,
    interval_of_function,
    interval_of_mean,
    one_if_equal,
    percentile_interval,
)
from attnprobe.stats.interval import within


def measure(
    chunks: Iterable[AttentionMaps],
    metrics: Sequence[Metric | str] | None = None,
    *,
    bootstrap: int = 1000,
    seed: int = 0,
    baselines: Mapping[str, Iterable[AttentionMaps]] | None = None,
    group: str | None = None,
) -> Measurements:
    """Measure a stream of attention maps; memory does not grow with the number of images.

    Images with equal pixels are counted once; see `units`.

    Args:
        chunks: maps of some images each, of any number of stages and sites; read once, in float32 (float64 stays).
            A chunk may reuse its memory once the next one is asked for.
        metrics: what to measure, metrics or names, see `choose`; None for those of `DEFAULT` that are
            defined on the maps.
        bootstrap: resamples of the images for the 95 % intervals; 0 for the normal approximation, which also serves
            where a metric has more than 128 MiB of values.
        seed: of the resampling, the same for all metrics.
        baselines: maps to compare with, such as {"untrained": chunks}, measured in the same way. "uniform" attention
            is always added to metrics of maps.
        group: a regular expression whose first group, searched in the image ids, names what counts once: the mean over
            such images is one observation. An id without a match is a group of its own.

    Returns:
        {name: Measurement}, named after the metric. Where a metric was measured at two sites of one stage, the plain
        name is effective attention and the other is "name@weights"; stages but "trunk" are named "stage/name".
        Metrics of tokens alone are measured once per stage.

    Raises:
        InputError: no maps, or something else; a metric asked for that none of them suits, or two metrics of one name.
        ShapeError: chunks of one stage and site differ in more than their images, a baseline has another shape, or a
            metric did not return what its axes promise.
    """
    wanted, required = choose(metrics)
    if bootstrap < 0:
        raise InputError(f"bootstrap={bootstrap} must be the number of resamples, 0 or more.")
    answers = Answers()
    places = collect(answers.counted(_require_maps(chunks, "measure")), wanted)
    others = {
        name: collect(_require_maps(maps, f"the baseline {name!r} of measure"), wanted)
        for name, maps in (baselines or {}).items()
    }
    found = summarise(places, wanted, required, others, bootstrap, seed, group)
    return Measurements(found, answers.facts(), found.refusals)


def _require_maps(chunks: Iterable[AttentionMaps], who: str) -> Iterator[AttentionMaps]:
    """The chunks, of which each must be attention maps.

    Raises:
        InputError: something else.
    """
    expected = f"{who} takes attention maps, as ap.capture(model, images) or ap.open_maps(path) gives them"
    if isinstance(chunks, (torch.Tensor, torch.nn.Module, str)) or not isinstance(chunks, Iterable):
        raise InputError(f"{expected}, got {type(chunks).__name__}.{_REMEDY if hasattr(chunks, 'shape') else ''}")
    for chunk in chunks:
        if not isinstance(chunk, AttentionMaps):
            remedy = _REMEDY if hasattr(chunk, "shape") else ""
            raise InputError(f"{expected}, got an iterable of {type(chunk).__name__}.{remedy}")
        yield chunk
        del chunk  # its memory is free for the next one


_REMEDY = " ap.AttentionMaps(values, image_ids, grid) makes them of an array [image, layer, head, query, key]."


def summarise(
    places: list[Place],
    wanted: Sequence[Metric],
    required: frozenset[str],
    baselines: Mapping[str, list[Place]],
    bootstrap: int = 1000,
    seed: int = 0,
    group: str | None = None,
) -> Measurements:
    """Measurements of what was collected, with baselines; arguments and errors as in `measure`."""
    _check_measured(places, wanted, required)
    result = _measurements(places, wanted, bootstrap, seed, group)
    for name, others in baselines.items():
        other = _measurements(others, wanted, bootstrap, seed, group)
        for key in result.keys() & other.keys():
            bare = replace(other[key], baselines={})
            if bare.mean.shape != result[key].mean.shape:
                raise ShapeError(
                    f"baseline {name!r} has {key} of {bare.mean.shape}, the maps {result[key].mean.shape}; "
                    "a baseline needs the same number of layers and heads."
                )
            result[key] = replace(result[key], baselines={**result[key].baselines, name: bare})
    measured = {m.metric for m in result.values()}
    refusals = {name: why for place in reversed(places) for name, why in place.refusals.items() if why}
    return Measurements(result, refusals={name: why for name, why in refusals.items() if name not in measured})


def _check_measured(places: list[Place], metrics: Sequence[Metric], required: frozenset[str]) -> None:
    """Raises InputError if a metric that was asked for by name is defined nowhere, or if none is."""
    for metric in metrics:
        if any(metric.name in place.collected for place in places):
            continue
        reasons = [f"{p.stage} at site {p.site!r}: {p.refusals[metric.name]}" for p in places]
        if metric.name in required:
            raise InputError(f"metric {metric.name!r} is not defined on these maps. {'; '.join(reasons)}.")
    if not any(place.collected for place in places):
        raise InputError(f"none of {len(metrics)} metrics is defined on these maps; capture site='weights'.")


def _measurements(
    places: list[Place], metrics: Sequence[Metric], bootstrap: int, seed: int, group: str | None
) -> dict[str, Measurement]:
    """Measurements of one run of `collect`, by name."""
    result, places = {}, _numbered(places)
    units = {(place.stage, place.site): Units.of(place.image_ids, place.pixels, group) for place in places}
    uniform = {(place.stage, place.site): _of_uniform_attention(place, metrics) for place in places}
    for stage in dict.fromkeys(place.stage for place in places):
        for metric in metrics:
            measured = [place for place in places if place.stage == stage and metric.name in place.collected]
            measured.sort(key=lambda place: not place.is_effective)  # stable: first come, first named
            for rank, place in enumerate(measured):
                key = str(Key(metric.name, stage, place.site if rank else ""))
                its = units[stage, place.site]
                of_units = its.collected(place.collected[metric.name])
                named = replace(place, image_ids=list(its.ids), n_units=place.n_units if group else None)
                folded = None if place.n_units is None else of_units.n_images
                m = with_units(_measurement(named, metric, of_units, bootstrap, seed), its, group, folded)
                reference = uniform[place.stage, place.site].get(metric.name)
                baselines = {"uniform": _of_uniform(place, metric, reference, bootstrap, seed)} if reference else {}
                result[key] = replace(m, baselines=baselines)
    return result


def _numbered(places: list[Place]) -> list[Place]:
    """The places, with the numbers that their blocks have through several stages."""
    likes = [place.uniform for place in places]
    found = numbered({
        like.stage: (like.kind, (like.grid, like.values.shape[3:]), () if like.part.layers is not None else like.layers)
        for like in likes
    })  # fmt: skip
    return [
        replace(place, together=its.together, numbers=its.numbers, network=its.network)
        if (its := found.get(place.stage))
        else place
        for place in places
    ]


def _of_uniform_attention(place: Place, metrics: Sequence[Metric]) -> dict[str, Collected]:
    """The values of every metric of maps, by its name, on one image of uniform attention."""
    of_maps = [m for m in metrics if m.name in place.collected and "maps" in m.parameters and m.accepts(place.uniform)]
    result = {}
    if of_maps:
        whole = replace(place.uniform, values=place.uniform.values.contiguous())
        with torch.inference_mode(), sharing():
            for metric in of_maps:
                result[metric.name] = Collected()
                result[metric.name].add(values_of(metric, whole))
    return result


def _of_uniform(place: Place, metric: Metric, collected: Collected, bootstrap: int, seed: int) -> Measurement:
    one: dict[str, Any] = {"image_ids": ["uniform"], "not_finite": [], "n_units": None}
    about = replace(place, site="weights", is_effective=True, stochastic=True, **one)
    return _measurement(about, metric, collected, bootstrap, seed)


def _measurement(place: Place, metric: Metric, collected: Collected, bootstrap: int, seed: int) -> Measurement:
    settings = metric.all_settings
    n_images = collected.n_images if place.n_units is None else place.n_units
    drawn = None if collected.resampled is None else collected.resampled.means()
    if drawn is None:
        interval, mean, std, ci = _mean_and_interval(metric, collected, bootstrap, seed)
    else:
        bootstrap, seed = len(drawn), 0
        interval, mean, std, ci = _from_resamples(metric, collected, drawn, n_images)
    value_range = metric.value_range
    if metric.narrow_range is not None:
        value_range = metric.narrow_range(stochastic=place.stochastic or "renormalize" in settings, **settings)
    kept = {**place.uniform.part.numbers, **({"layer": list(place.numbers)} if place.numbers else {})}
    labels = {axis: numbers for axis, numbers in kept.items() if axis in metric.axes}
    m = Measurement(
        metric=metric.name,
        site=place.site,
        stage=place.stage,
        is_effective=place.is_effective,
        axes=metric.axes,
        value_range=value_range,
        unit=metric.unit,
        mean=mean,
        std=std,
        ci=ci,
        n_images=n_images,
        n_excluded=collected.n_excluded,
        settings={
            **settings,
            **place.uniform.part.settings,
            "interval": interval,
            "bootstrap": bootstrap,
            "bootstrap_seed": seed,
        },
        coords={**labels, **(metric.coords(grid=place.uniform.grid, **settings) if metric.coords else {})},
        per_image=collected.per_image,
        image_ids=() if collected.per_image is None else tuple(place.image_ids),
        from_mean=metric.from_mean,
        explanation=metric.explanation,
        not_finite=tuple(place.not_finite),
        replicates=drawn,
        together=place.together,
        network=place.network,
        of=next(of for given, of in OF.items() if given in metric.parameters),
    )
    return replace(m, summary=metric.summarise(m)) if metric.summarise else m


OF = {"maps": "maps", "tokens": "block outputs", "value_vectors": "value vectors"}
"""The thing a metric is of, by the first of these that its function takes; see `Measurement.of`."""


def _from_resamples(
    metric: Metric, collected: Collected, drawn: np.ndarray, n_images: int
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """Like `_mean_and_interval`, from means of resamples that were drawn while measuring."""
    moments = collected.moments()
    mean, std = moments.mean_and_std()
    if metric.from_mean is None:
        return "poisson", mean, std, np.where(moments.n > 1, percentile_interval(drawn, n_images), np.nan)
    n_finite = one_if_equal(n_images * (moments.n / collected.n_images))
    mean = metric.from_mean(mean, n_finite)
    ci = percentile_interval(centred(metric.from_mean(drawn, n_finite), mean), n_images)
    return "poisson", mean, np.full_like(mean, np.nan), within(ci, metric.value_range)


def _mean_and_interval(
    metric: Metric, collected: Collected, bootstrap: int, seed: int
) -> tuple[str, np.ndarray, np.ndarray, np.ndarray]:
    """Kind of interval, then mean, std [*axes] and ci [2, *axes] as in `Measurement`."""
    moments, per_image = collected.moments(), collected.per_image
    mean, std = moments.mean_and_std()
    if metric.from_mean is None:
        if per_image is None or bootstrap == 0 or collected.folded:
            return "normal", mean, std, within(moments.normal_interval(), metric.value_range)
        ci = interval_of_mean(per_image, bootstrap, seed)
        return "bootstrap", mean, std, np.where(moments.n > 1, ci, np.nan)
    mean = metric.from_mean(mean, one_if_equal(moments.n))
    unknown = np.full_like(mean, np.nan)  # no spread over images where the value of one image means nothing
    if per_image is None or bootstrap == 0 or collected.folded or collected.n_images < 2:
        return "none", mean, unknown, np.stack([unknown, unknown])
    ci = interval_of_function(metric.from_mean, per_image, bootstrap, seed)
    return "bootstrap", mean, unknown, within(ci, metric.value_range)
