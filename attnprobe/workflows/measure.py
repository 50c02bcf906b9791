"""Measuring maps files: everything a report shows of one model."""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from attnprobe.core.accuracy import no_accuracy_text
from attnprobe.core.browse import StageShape
from attnprobe.core.errors import InputError, MapsFileError, option
from attnprobe.core.examined import AttendedImage, Examined
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.text import visible
from attnprobe.io.progress import Advance, progress
from attnprobe.io.reference import NOT_SAID, UserImages
from attnprobe.io.remote import place
from attnprobe.io.run import Run, maps_of, name_of, run_of, untrained_maps
from attnprobe.metrics import METRICS, measure
from attnprobe.metrics.engine.choose import choose
from attnprobe.metrics.engine.units import doubts
from attnprobe.store import MapReader, open_maps
from attnprobe.store.history import read_history
from attnprobe.workflows.measured import examine_measured, is_measured
from attnprobe.workflows.view_images import DataSet


def examine(
    path: Path | str,
    *,
    metrics: Sequence[str] | None = None,
    name: str | None = None,
    pictures: int = 6,
    user: UserImages = NOT_SAID,
    group: str | None = None,
) -> Examined:
    """Measure a maps file, its baselines included, and gather what a report shows.

    Args:
        path: a maps file, a run that has one, or a folder of `capture --stats-only`.
        metrics: names and settings, see `attnprobe.metrics.engine.choose`; the default ones that fit if None.
        name: how to call it in tables; its folder or file name if None.
        pictures: how many images to show attention on, if the data set is at hand.
        user: where the images are; of itself a file opens only digits, fractals and what lies in its run's folder.
        group: which images count once together, as for `measure`.
    """
    choose(metrics)  # a misspelt name is said before any file is opened
    if (metric := str(path).partition(":")[0]) in METRICS and not Path(path).exists():
        raise InputError(
            f"{metric} is a metric, not a file: give it with {option('metric', path, f'metrics=[{path!r}]')}."
        )
    path = maps_of(place(path))
    if is_measured(path):
        return examine_measured(path, metrics=metrics, name=name, group=group)
    reader = open_maps(path)
    with progress(f"measure {path.name}", len(reader)) as advance:
        baselines = {"untrained": open_maps(untrained_maps(path))} if untrained_maps(path).exists() else {}
        measurements = measure(_counted(reader, advance), metrics, baselines=baselines, group=group)
    first, run, notes = reader.maps(site=reader.sites()[0], images=slice(0, 1)), Run(path.parent), []
    try:
        history = read_history(run.probe) if path == run.maps else None
    except MapsFileError as error:  # only shown: the rest of the report does without it
        history, notes = None, [f"the history of its training is left out: {visible(error)}"]
    return Examined(
        name=name or name_of(path),
        measurements=measurements,
        info=_info(reader),
        layers=first.layers,
        grid=first.grid,
        certificate=reader.attrs.get("certificate", {}),
        pictures=pictures_of(reader, pictures, user),
        maps=reader,
        class_names=tuple(reader.attrs.get("config", {}).get("class_names") or ()),
        history=history,
        notes=(*notes, *(run.warnings() if path == run.maps else ()), *_no_accuracy(reader), *doubts(measurements)),
    )


def examine_all(paths: Sequence[Path | str], **how: Any) -> list[Examined]:
    """`examine` several, each with the same options; where two have one name, all are called by their paths."""
    examined = [examine(path, **how) for path in paths]
    if len({e.name for e in examined}) < len(examined):
        examined = [replace(e, name=str(path)) for e, path in zip(examined, paths, strict=True)]
    return examined


def _counted(reader: MapReader, advance: Advance) -> Iterator[AttentionMaps]:
    for maps in reader:
        yield maps
        if (maps.stage, maps.site) == (reader.stages[0], reader.sites()[0]):
            advance(maps.n_images)


def _info(reader: MapReader) -> dict[str, Any]:
    """Origin of the numbers, as the report shows it."""
    attrs, config = reader.attrs, reader.attrs.get("config", {})
    names = ("model", "variant", "data", "seed", "device", "created", "checkpoint_sha256", "versions")
    info = {name: attrs[name] for name in names if name in attrs}
    info |= {"n_images": len(reader), **{name: config.get(name) for name in ("parameters", "images", "spec")}}
    labels, prediction = np.asarray(reader.labels), np.asarray(reader.prediction)
    known = (labels >= 0) & (prediction >= 0)
    if known.any():
        info["accuracy"] = float((labels[known] == prediction[known]).mean())
        info["n_labelled"] = int(known.sum())
        info["n_classes"] = len(config.get("class_names", ())) or None
    return info


def _no_accuracy(reader: MapReader) -> Iterator[str]:
    """Sentence if images have labels and the model gives none of them a class of theirs."""
    labels, prediction = np.asarray(reader.labels), np.asarray(reader.prediction)
    classes = len(reader.attrs.get("config", {}).get("class_names") or ())
    if classes and (labels >= 0).any() and not (prediction >= 0).any():
        yield no_accuracy_text(classes)


def _has_places(shape: StageShape) -> bool:
    """True if the keys of a stage have places in the image."""
    return shape.kind in ("self", "pyramid") and shape.keys == shape.grid.n_tokens and shape.grid.rows > 0


def pictures_of(reader: MapReader, count: int, user: UserImages = NOT_SAID) -> tuple[AttendedImage, ...]:
    """A few images, evenly spread over the file, with the attention they get; none if the data set is not at hand.

    Warns why it is not.
    """
    config = reader.attrs.get("config", {})
    data = DataSet(config, run_of(reader.path), user) if count else None
    if data and data.why and config.get("images"):
        warnings.warn(f"{reader.path} is shown without pictures: {data.why}", stacklevel=2)
    if data and not data.why and data.fingerprint != reader.attrs.get("data", data.fingerprint):
        there = sum(image_id in data.where for image_id in reader.image_ids)
        warnings.warn(
            f"{reader.path} is of other images than {data.name}: names, sizes or classes differ, and {there} of its "
            f"{len(reader)} names are there. Name the images that were captured.",
            stacklevel=2,
        )
    chosen = [int(i) for i in np.linspace(0, len(reader) - 1, min(count, len(reader)))]
    chosen = [i for i in chosen if data and reader.image_ids[i] in data.where]
    stage = next((shape for shape in reader.shapes() if _has_places(shape)), None)
    if not data or not chosen or stage is None:  # without places, what its keys are has none in the picture
        return ()
    pixels = data.pixels([reader.image_ids[i] for i in chosen])
    maps = reader.maps(stage.name, reader.sites(stage.name)[0], chosen)
    grid = maps.grid
    source = (grid.token(grid.prefix[0]) if grid.prefix else None) or 0
    kept = range(maps.values.shape[3]) if maps.part.queries is None else maps.part.queries
    if source not in kept:
        return ()  # whom the first of its rows belongs to is not shown
    rows = maps.values[:, :, :, kept.index(source)] if grid.prefix else maps.values.mean(3)  # [image, layer, head, key]
    attention = grid.over_image(rows.float().numpy())
    names = config.get("class_names") or ()
    told = maps.outcome

    def class_name(index: int) -> str:
        return names[index] if 0 <= index < len(names) else str(index) if index >= 0 else ""

    return tuple(
        AttendedImage(
            image_id=maps.image_ids[i],
            pixels=pixels[i],
            label=class_name(int(told.labels[i])) if told else "",
            prediction=class_name(int(told.prediction[i])) if told else "",
            probability=float(told.probability[i]) if told else float("nan"),
            attention=attention[i],
            blocks=stage.layers,
        )
        for i in range(len(chosen))
    )
