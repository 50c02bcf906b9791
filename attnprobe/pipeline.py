"""What does attnprobe do, step by step? Here the stages meet; `train` is in experiment.py, `capture` in gather.py.

train -> a run's directory     capture -> maps.h5     examine -> measurements     report -> pages and tables
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from attnprobe.ablation import METRICS as SAY_WHAT_COULD_GO
from attnprobe.ablation import evidence_of
from attnprobe.core import fs
from attnprobe.core.errors import InputError
from attnprobe.core.evidence import TOLERANCE
from attnprobe.core.examined import Examined
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.progress import Advance, progress
from attnprobe.core.reference import NOT_SAID, UserImages
from attnprobe.core.run import Run
from attnprobe.experiment import train
from attnprobe.gather import capture, doubts, measure_live, untrained_maps
from attnprobe.metrics import atlases, images_needed, measure
from attnprobe.metrics.choose import choose
from attnprobe.models import read_checkpoint
from attnprobe.pictures import pictures_of
from attnprobe.reports import write_report
from attnprobe.reports.gate import Condition, Outcome, check
from attnprobe.reports.kinds import checked_bars
from attnprobe.reports.numbers import neighbour_means
from attnprobe.store import MapReader, open_maps
from attnprobe.store.history import read_history

__all__ = ["capture", "demo", "examine", "gate", "measure_live", "report", "train", "untrained_maps"]

FAST_EPOCHS, FAST_IMAGES = 6, 120
"""What `demo --fast` trains for and captures, instead of the recipes' epochs and all validation images."""


CURVE_RESAMPLES = 400
"""For each number of images of the curve that says how many are enough."""


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
        metrics: names and settings, see `attnprobe.metrics.choose`; the default ones that fit if None.
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


def report(
    paths: Sequence[Path | str],
    *,
    out: Path | str,
    formats: Sequence[str] = ("html", "json", "csv", "md"),
    metrics: Sequence[str] | None = None,
    notes: Sequence[str] = (),
    fail_on: Sequence[str] = (),
    verify: bool = False,
    tolerance: float = TOLERANCE,
    bars: Mapping[str, float] | None = None,
    user: UserImages = NOT_SAID,
    group: str | None = None,
) -> tuple[list[Examined], list[Path]]:
    """Examine maps files and write the report of all of them side by side.

    Args:
        fail_on: conditions that `gate` will be asked about: what they need is measured, too.
        verify: take away what is similar or redundant in each run, and show what that costs, at this `tolerance`; see
            `verify_drops`.
        bars: of kinds of collapse, by name, that are not to be the verdict's own.
        user: where the images of the maps are, see `examine`; also those that `verify` needs.
        group: which images count once together, as for `measure`.

    Returns:
        What was examined, and the files written into the folder `out`.
    """
    if not paths:
        raise InputError("nothing to report on; give one maps file or run, or several.")
    runs = [_run_of(Path(path)) for path in paths] if verify else []
    asked = {name for condition in map(Condition.parse, fail_on) for name in condition.needs}
    bars = checked_bars(bars or {})
    metrics = ("default", "atlas") if metrics is None else metrics
    asked |= {*SAY_WHAT_COULD_GO} if verify else set()
    metrics = (*metrics, *sorted(asked - {metric.name for metric in choose(metrics)[0]}))
    examined = [
        _explored(replace(e, notes=(*notes, *e.notes), bars=bars))
        for e in examine_all(paths, metrics=metrics, user=user, group=group)
    ]
    if verify:
        examined = [_verified(e, run, tolerance, user) for e, run in zip(examined, runs, strict=True)]
    with fs.as_work_error(f"writing the report into {out}"):
        fs.make_folder(Path(out))
        return examined, write_report(examined, Path(out), formats)


def gate(examined: Sequence[Examined], fail_on: Sequence[str]) -> list[Outcome]:
    """What becomes of conditions such as "similar_blocks>3" on every run; see `attnprobe.reports.gate`."""
    return check(examined, [Condition.parse(text) for text in fail_on])


def demo(out: Path, *, fast: bool = False) -> tuple[list[Examined], list[Path]]:
    """Digits -> train ViT-16 and DeepViT-16 -> capture both -> the report of the two side by side.

    Run again, it goes on where it was stopped. `fast` trains for `FAST_EPOCHS` epochs, and the report says so.
    """
    runs, notes = [], []
    for recipe in ("digits_vit_16", "digits_deepvit_16"):
        run = Run(Path(out) / recipe.removeprefix("digits_"))
        train(recipe, run.path, settings={"epochs": FAST_EPOCHS} if fast else None)
        if not _is_current(run):
            capture(run.path, overwrite=True, batch_size=60, images=FAST_IMAGES if fast else None)
        runs.append(run.path)
    if fast:
        notes = [f"--fast: trained for {FAST_EPOCHS} epochs only, so these are not converged networks"]
    return report(runs, out=Path(out), notes=notes)


# --- what the steps above share ------------------------------------------------------------------------------------


def _explored(e: Examined) -> Examined:
    """With the types of its heads, and how many images its numbers need."""
    precision = {}
    for key, number, of in (("similar_blocks", None, "similar blocks"),
                            ("layer_similarity_centred", neighbour_means, "centred cosine of neighbours")):  # fmt: skip
        m = e.measurements.get(key)
        if m is not None and m.per_image is not None and m.n_images > 1 and len(e.layers) > 1:
            found = images_needed(m, None if number is None else number(m), resamples=CURVE_RESAMPLES)
            if math.isfinite(found.value):  # a layer without a finite value has no mean with its neighbour
                precision[key] = replace(found, of=of)
    return replace(e, measurements={**e.measurements, **atlases(e.measurements)}, precision=precision)


def _run_of(path: Path) -> Path:
    """The run that maps are of, which has the model."""
    run = path if path.is_dir() else path.parent
    if not Run(run).config.exists():
        raise InputError(
            f"{path} is not of a run, so there is no model at hand: attnprobe verify-drops MODEL --maps {path}."
        )
    return run


def _verified(e: Examined, run: Path, tolerance: float, user: UserImages) -> Examined:
    """With what taking parts away costs, and the importance of heads among its measurements."""
    sha = e.info.get("checkpoint_sha256", "")
    evidence = evidence_of(run, e.measurements, sha256=sha, tolerance=tolerance, data=user.data, data_dir=user.data_dir)
    return replace(e, evidence=evidence, measurements={**e.measurements, **evidence.importance})


def _is_current(run: Run) -> bool:
    """Whether the run's maps are complete and of its newest checkpoint."""
    if not (run.maps.exists() and untrained_maps(run.maps).exists()):
        return False
    return open_maps(run.maps).attrs["checkpoint_sha256"] == read_checkpoint(run.path).sha256


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
