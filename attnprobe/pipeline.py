"""What does attnprobe do, step by step? Here the stages meet; `train` is in experiment.py.

train -> a run's directory     capture -> maps.h5     examine -> measurements     report -> pages and tables
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import nn

from attnprobe.capture import Capture
from attnprobe.capture.capturing import capture as capture_maps
from attnprobe.capture.recorder import SITES
from attnprobe.core import fs
from attnprobe.core.config import read_yaml
from attnprobe.core.errors import InputError
from attnprobe.core.examined import Examined
from attnprobe.core.images import ImageSource
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.progress import Advance, progress
from attnprobe.core.run import Run
from attnprobe.core.tap import Site
from attnprobe.data import load_images
from attnprobe.experiment import train
from attnprobe.metrics import measure
from attnprobe.metrics.choose import choose
from attnprobe.models import build_model, input_spec, read_checkpoint
from attnprobe.models.describe import resolve_model
from attnprobe.pictures import pictures_of
from attnprobe.reports import write_report
from attnprobe.store import CapturePlan, MapReader, MapWriter, open_maps
from attnprobe.store.history import read_history
from attnprobe.training import pick_device

FAST_EPOCHS, FAST_IMAGES = 6, 120
"""What `demo --fast` trains for and captures, instead of the recipes' epochs and all validation images."""


def capture(
    model: str | Path,
    *,
    architecture: str | None = None,
    img_size: int | None = None,
    data: str | None = None,
    data_dir: Path | None = None,
    split: str = "val",
    images: int | None = None,
    what: Sequence[str] = ("weights", "effective", "tokens"),
    out: Path | None = None,
    dtype: Literal["bfloat16", "float16", "float32"] = "bfloat16",
    overwrite: bool = False,
    keep_shards: bool = False,
    batch_size: int = 16,
    untrained: int = 64,
    device: str = "auto",
    bad_images: Literal["refuse", "skip"] = "refuse",
    workers: int = 0,
    seed: int = 0,
    allow_nonfinite: bool = False,
) -> Path:
    """Capture a model's attention into one HDF5 file; the same command goes on where a stopped one ended.

    Args:
        model: a run's directory, a checkpoint, or the name of a model.
        architecture: the model's name, for checkpoint files that do not say it.
        img_size: another resolution than the model's own.
        data: what `load_images` understands; the run's own data if None.
        images: a class-balanced subset of this many; all if None.
        what: of "weights", "effective", "tokens".
        out: the file; maps.h5 in the run, or MODEL.h5 here, if None.
        untrained: images to capture from the same architecture with initial weights, into a second file beside the
            first (NAME.untrained.h5), as a baseline; 0 for none.

    Returns:
        The path of the maps file.
    """
    loaded, facts = resolve_model(model, architecture, img_size=img_size, seed=seed, allow_nonfinite=allow_nonfinite)
    for note in facts.notes:
        warnings.warn(note, stacklevel=2)
    spec = input_spec(loaded)
    recipe = _recipe_of(Path(model))
    data = data or recipe.get("dataset")
    if data is None:
        raise InputError(
            f"which images should {model} look at? Name them, as in --data digits or --data path/to/folder."
        )
    if data == recipe.get("dataset") and data_dir is None and recipe.get("data_dir"):
        data_dir = Path(recipe["data_dir"])
    source = load_images(
        data,
        split,
        spec=spec,
        data_dir=data_dir,
        limit=images,
        bad_images=bad_images,
        workers=workers,
    )
    out = Path(out) if out else _default_maps(Path(model))
    if out.exists() and not overwrite:
        raise InputError(f"{out} exists. Choose another output with -o, or replace it with --overwrite.")
    chosen = pick_device(device)
    reference = {"data": data, "split": split, "data_dir": data_dir and str(data_dir), "images": images}
    settings = {"what": list(what), "autocast": False}
    shared = {"dtype": dtype, "overwrite": overwrite, "keep_shards": keep_shards}
    plan = CapturePlan(
        image_ids=tuple(source.ids),
        model=facts.model,
        variant=facts.variant,
        checkpoint_sha256=facts.sha256,
        config={
            "model_args": facts.options,
            "parameters": facts.parameters,
            "notes": list(facts.notes),
            "spec": asdict(spec),
            "images": reference,
            "class_names": list(source.class_names),
            "recipe": recipe,
        },
        versions={name: version(name) for name in ("torch", "timm", "attnprobe")},
        data=source.fingerprint,
        seed=seed,
        device=chosen.type,
        settings=settings,
    )
    if untrained and facts.sha256:  # first, so that a command that was stopped here can be run again
        fresh = build_model(facts.model, seed=seed, **facts.options).to(chosen)
        few = load_images(
            data, split, spec=spec, data_dir=data_dir, limit=min(untrained, len(source)),
            bad_images=bad_images, workers=workers,
        )  # fmt: skip
        base = replace(plan, image_ids=tuple(few.ids), checkpoint_sha256="", data=few.fingerprint)
        _store(fresh, few, base, untrained_maps(out), what, batch_size, {**shared, "overwrite": True})
    _store(loaded.to(chosen), source, plan, out, what, batch_size, shared)
    return out


def _store(
    model: nn.Module,
    source: ImageSource,
    plan: CapturePlan,
    out: Path,
    what: Sequence[str],
    batch_size: int,
    options: dict[str, Any],
) -> None:
    """Model + images -> one maps file, shard by shard."""
    sites: tuple[Site, ...] = tuple(site for site in SITES if site in what)
    capturing: Capture = capture_maps(model, source, sites, tokens="tokens" in what, batch_size=batch_size)
    with MapWriter(out, plan, **options) as writer:
        pending = writer.pending()
        done = len(source) - sum(len(shard) for shard in pending)
        with progress(f"capture {out.name}", len(source), done=done) as advance:
            for shard in pending:
                for maps in capturing.batches(order=shard):
                    writer.append(maps)
                    advance(maps[0].n_images)
        writer.close(capturing.certificate.to_dict())


def examine(
    path: Path | str, *, metrics: Sequence[str] | None = None, name: str | None = None, pictures: int = 6
) -> Examined:
    """Measure a maps file, its baselines included, and gather what a report shows.

    Args:
        path: a maps file, or a run that has one.
        metrics: names and settings, see `attnprobe.metrics.choose`; the default ones that fit if None.
        name: how to call it in tables; its folder or file name if None.
        pictures: how many images to show attention on, if the data set is at hand.
    """
    path = Path(path)
    path = Run(path).maps if path.is_dir() and Run(path).maps.exists() else path
    choose(metrics)  # a misspelt name is said before any file is opened
    reader = open_maps(path)
    with progress(f"measure {path.name}", len(reader)) as advance:
        baselines = {"untrained": open_maps(untrained_maps(path))} if untrained_maps(path).exists() else {}
        measurements = measure(_counted(reader, advance), metrics, baselines=baselines)
    first = reader.maps(images=slice(0, 1))
    return Examined(
        name=name or (path.parent.name if path.name == "maps.h5" else path.stem) or path.stem,
        measurements=measurements,
        info=_info(reader),
        layers=first.layers,
        grid=first.grid,
        certificate=reader.attrs.get("certificate", {}),
        pictures=pictures_of(reader, pictures),
        history=read_history(Run(path.parent).probe) if path == Run(path.parent).maps else None,
    )


def report(
    paths: Sequence[Path | str],
    *,
    out: Path,
    formats: Sequence[str] = ("html", "json", "csv", "md"),
    metrics: Sequence[str] | None = None,
    notes: Sequence[str] = (),
) -> tuple[list[Examined], list[Path]]:
    """Examine maps files and write the report of all of them side by side.

    Returns:
        What was examined, and the files written into the folder `out`.
    """
    if not paths:
        raise InputError("nothing to report on; give one maps file or run, or several.")
    examined = [replace(examine(path, metrics=metrics), notes=tuple(notes)) for path in paths]
    if len({e.name for e in examined}) < len(examined):
        examined = [replace(e, name=str(path)) for e, path in zip(examined, paths, strict=True)]
    with fs.as_work_error(f"writing the report into {out}"):
        fs.make_folder(out)
        return examined, write_report(examined, out, formats)


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


def untrained_maps(path: Path) -> Path:
    """Where the baseline of a maps file is."""
    return path.with_suffix(".untrained.h5")


# --- what the steps above share ------------------------------------------------------------------------------------


def _recipe_of(run: Path) -> dict[str, Any]:
    """The options a run was trained with; none for anything else."""
    config = Run(run).config
    return read_yaml(config) if run.is_dir() and config.exists() else {}


def _default_maps(model: Path) -> Path:
    return Run(model).maps if (model / "checkpoints").is_dir() else Path(f"{model.stem}.h5")


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
    info |= {"n_images": len(reader), "parameters": config.get("parameters")}
    labels, prediction = np.asarray(reader.labels), np.asarray(reader.prediction)
    known = labels >= 0
    if known.any() and len(prediction):
        info["accuracy"] = float((labels[known] == prediction[known]).mean())
        info["n_classes"] = len(config.get("class_names", ())) or None
    return info
