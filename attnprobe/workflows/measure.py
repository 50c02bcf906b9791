"""Measuring maps files: everything a report shows of one model."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from attnprobe.core.examined import Examined
from attnprobe.core.maps import AttentionMaps
from attnprobe.io.progress import Advance, progress
from attnprobe.io.reference import NOT_SAID, UserImages
from attnprobe.io.run import Run
from attnprobe.metrics import measure
from attnprobe.metrics.engine.choose import choose
from attnprobe.store import MapReader, open_maps
from attnprobe.store.history import read_history
from attnprobe.workflows.capture import doubts, untrained_maps
from attnprobe.workflows.figures import pictures_of


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
        path: a maps file, or a run that has one.
        metrics: names and settings, see `attnprobe.metrics.engine.choose`; the default ones that fit if None.
        name: how to call it in tables; its folder or file name if None.
        pictures: how many images to show attention on, if the data set is at hand.
        user: where the images are; of itself a file opens only digits, fractals and what lies in its run's folder.
        group: which images count once together, as for `measure`.
    """
    path = Path(path)
    path = Run(path).maps if path.is_dir() and Run(path).maps.exists() else path
    choose(metrics)  # a misspelt name is said before any file is opened
    reader = open_maps(path)
    with progress(f"measure {path.name}", len(reader)) as advance:
        baselines = {"untrained": open_maps(untrained_maps(path))} if untrained_maps(path).exists() else {}
        measurements = measure(_counted(reader, advance), metrics, baselines=baselines, group=group)
    first, run = reader.maps(site=reader.sites()[0], images=slice(0, 1)), Run(path.parent)
    return Examined(
        name=name or (path.parent.name if path.name == "maps.h5" else path.stem) or path.stem,
        measurements=measurements,
        info=_info(reader),
        layers=first.layers,
        grid=first.grid,
        certificate=reader.attrs.get("certificate", {}),
        pictures=pictures_of(reader, pictures, user),
        maps=reader,
        class_names=tuple(reader.attrs.get("config", {}).get("class_names") or ()),
        history=read_history(run.probe) if path == run.maps else None,
        notes=(*(run.warnings() if path == run.maps else ()), *doubts(measurements)),
    )


def examine_all(
    paths: Sequence[Path | str],
    *,
    metrics: Sequence[str] | None = None,
    pictures: int = 6,
    user: UserImages = NOT_SAID,
    group: str | None = None,
) -> list[Examined]:
    """`examine` several; where two have one name, all are called by their paths."""
    examined = [examine(path, metrics=metrics, pictures=pictures, user=user, group=group) for path in paths]
    if len({e.name for e in examined}) < len(examined):
        examined = [replace(e, name=str(path)) for e, path in zip(examined, paths, strict=True)]
    return examined


def _counted(reader: MapReader, advance: Advance) -> Iterator[AttentionMaps]:
    for maps in reader:
        yield maps
        if (maps.stage, maps.site) == (reader.stages[0], reader.sites()[0]):
            advance(maps.n_images)


def _info(reader: MapReader) -> dict[str, Any]:
    """What the report says about where the numbers come from."""
    attrs, config = reader.attrs, reader.attrs.get("config", {})
    names = ("model", "variant", "data", "seed", "device", "created", "checkpoint_sha256", "versions")
    info = {name: attrs[name] for name in names if name in attrs}
    info |= {"n_images": len(reader), "parameters": config.get("parameters"), "images": config.get("images")}
    labels, prediction = np.asarray(reader.labels), np.asarray(reader.prediction)
    known = (labels >= 0) & (prediction >= 0)
    if known.any():
        info["accuracy"] = float((labels[known] == prediction[known]).mean())
        info["n_labelled"] = int(known.sum())
        info["n_classes"] = len(config.get("class_names", ())) or None
    return info
