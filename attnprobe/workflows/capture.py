"""A model and images -> a maps file, or measurements without one. Alone, or with others under torchrun."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnprobe.capturing import Capture, Recording
from attnprobe.capturing.recorder import SITES
from attnprobe.capturing.selection import Selection
from attnprobe.core.errors import InputError, MapsFileError
from attnprobe.core.examined import Examined
from attnprobe.core.images import ImageSource
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.measurement import Measurement
from attnprobe.core.spec import CaptureSpec
from attnprobe.core.tap import Site
from attnprobe.data import load_images
from attnprobe.io import fs
from attnprobe.io.lock import FileLock
from attnprobe.io.progress import Advance, progress
from attnprobe.io.ranks import Claims, Rank, shared_out
from attnprobe.io.reference import UserImages
from attnprobe.io.run import Run
from attnprobe.metrics.engine.choose import choose
from attnprobe.metrics.engine.slices import images_of, layers_and_grid, measure_slice, measure_slices
from attnprobe.metrics.engine.units import alike_in_words, copies_in_words
from attnprobe.models import build_model, input_spec
from attnprobe.models.describe import resolve_model
from attnprobe.reports import write_report
from attnprobe.store import CapturePlan, MapWriter, SharedMapWriter
from attnprobe.store.plan import canonical
from attnprobe.training import pick_device
from attnprobe.workflows.evaluate import recipe_of, run_images

SLICE = 64
"""Images whose measurements are one file: what a stop costs at most, and the smallest share of work."""


@dataclass(frozen=True)
class Task:
    """One model and its images, ready to be captured."""

    capturing: Capture
    source: ImageSource
    plan: CapturePlan


def capture_file(spec: CaptureSpec, *, out: Path | None = None) -> Path:
    """Capture a model's attention into one HDF5 file; the same call resumes one that was stopped.

    Under torchrun each process captures its share of the shards, and the last one makes the file. Of a model with
    trained weights, `spec.untrained` images are also captured from the same architecture with initial weights, into
    NAME.untrained.h5, as a baseline.

    Args:
        out: the file; maps.h5 in the run, or MODEL.h5 here, if None.

    Returns:
        The path of the maps file; of its shards' folder where they are kept, or others are still at work.
    """
    out = Path(out) if out else _default_maps(Path(spec.model))
    rank = Rank.of_this_process()
    if out.exists() and not spec.overwrite and rank.alone:
        raise InputError(f"{out} exists. Choose another output with -o, or replace it with --overwrite.")
    main, base = _tasks(spec, rank)
    shared = {"dtype": spec.stored_dtype, "keep_shards": spec.keep_shards or rank.local_world < rank.world}
    if base is not None:  # first, so that a command that was stopped here can be run again
        store(base, untrained_maps(out), rank, {**shared, "overwrite": rank.alone or spec.overwrite})
    return store(main, out, rank, {**shared, "overwrite": spec.overwrite})


def measure_live(
    spec: CaptureSpec,
    *,
    out: Path,
    metrics: Sequence[str] | None = None,
    formats: Sequence[str] = ("html", "json", "csv", "md"),
    group: str | None = None,
) -> tuple[list[Examined], list[Path]]:
    """Measure a model's attention and report on it without storing maps; memory and disk do not grow with images.

    Numbers are those of a float32 maps file of the same images. The same call resumes one that was stopped; under
    torchrun each process measures its share, and the last one writes the report.

    Args:
        out: folder of the report, and of `slices/`, the values of every metric on each image.
        metrics: names and settings, see `attnprobe.metrics.engine.choose`; the default ones that fit if None.
        formats: of the report, see `attnprobe.reports.write_report`.
        group: regular expression in image ids; images with the same match count once together.

    Returns:
        What was examined, and the files written; nothing where others are still at work.
    """
    choose(metrics)
    rank, out = Rank.of_this_process(), Path(out)
    main, base = _tasks(spec, rank)
    with fs.as_work_error(f"measuring into {out}"):
        fs.make_folder(out)
        lock = FileLock(out / "run.lock", rank.job if not rank.alone else "")
        claims = Claims(out / "claims")
        try:
            baselines = {} if base is None else {"untrained": _slices(base, out / "untrained", metrics, rank, claims)}
            slices = _slices(main, out / "slices", metrics, rank, claims)
            if not all(path.exists() for path in [*slices, *(p for paths in baselines.values() for p in paths)]):
                return [], []
            if not claims.take("report"):
                return [], []
            examined = _examined(main, slices, metrics, baselines, Path(spec.model), group)
            files = write_report([examined], out, formats)
            claims.remove()
            return [examined], files
        finally:
            claims.release_all()
            lock.release()


def store(task: Task, out: Path, rank: Rank, options: dict[str, Any]) -> Path:
    """Model + images -> one maps file, shard by shard."""
    capturing, n = task.capturing, len(task.source)
    if rank.alone:
        with MapWriter(out, task.plan, **options) as writer:
            if not writer.begun:
                first = _first_batch(task)
                if first[0].n_images <= len(writer.begin(first)):
                    writer.append(first)
                del first
            pending = writer.pending()
            done = n - sum(len(shard) for shard in pending)
            with progress(f"capture {out.name}", n, done=done) as advance:
                _capture_shards(task, pending, writer.append, advance)
            return writer.close(capturing.certificate.to_dict())
    with SharedMapWriter(out, task.plan, rank, **options) as writer:
        if not writer.begun:
            writer.begin(_first_batch(task))
        with progress(f"capture {out.name}, process 1 of {rank.world}", n) as advance:
            _capture_shards(task, writer.mine(), writer.append, advance)
        return writer.close(capturing.certificate.to_dict())


def _first_batch(task: Task) -> list[AttentionMaps]:
    """All maps of the first images, which decide what a shard is."""
    return next(_every_image(task, range(min(len(task.source), task.capturing.batch_size))))


def _capture_shards(task: Task, shards: Any, append: Callable[..., None], advance: Advance) -> None:
    for shard in shards:
        for maps in _every_image(task, shard):
            append(maps)
            advance(maps[0].n_images)


def _every_image(task: Task, order: range) -> Iterator[list[AttentionMaps]]:
    """The maps of the images at positions `order`, a batch at a time, and of no image fewer.

    Raises:
        InputError: an image that could be opened when the capture began gave no pixels now. Left out without a word
            it would be counted among the measured ones.
    """
    expected = [task.plan.image_ids[position] for position in order]
    missing = None
    for batch in task.capturing.batches(order=order):
        ids = list(batch[0].image_ids)
        missing = next((wanted for wanted, got in zip(expected, ids, strict=False) if wanted != got), None)
        if missing is not None:
            break
        expected = expected[len(ids) :]
        yield batch
    if expected:
        raise InputError(
            f"image {missing or expected[0]!r} of {task.plan.data} could be opened when the capture began, but not "
            "be decoded. Repair or remove it, then capture into a new output."
        )


def untrained_maps(path: Path) -> Path:
    """Where the baseline of a maps file is."""
    return path.with_suffix(".untrained.h5")


def _tasks(spec: CaptureSpec, rank: Rank) -> tuple[Task, Task | None]:
    """The capture, and that of its untrained baseline if the model has trained weights."""
    factors = spec.store == "qk"
    if factors and not {"weights", "effective"} & set(spec.kept):
        raise InputError("queries and keys are stored in place of maps; ask for weights or effective, too.")
    selection = Selection.parse(spec.layers, spec.heads, spec.queries)
    model, facts = resolve_model(
        spec.model,
        spec.architecture,
        img_size=spec.img_size,
        seed=spec.seed,
        allow_nonfinite=spec.allow_nonfinite,
        initial=spec.initial,
    )
    for note in facts.notes:
        warnings.warn(note, stacklevel=3)
    device = pick_device(spec.device)
    if device.type == "cuda" and not rank.alone:
        device = torch.device("cuda", rank.local)
    pixels, recipe = input_spec(model), recipe_of(Path(spec.model))
    data, data_dir = run_images(Path(spec.model), recipe, UserImages(spec.data, spec.data_dir))
    opening = {"spec": pixels, "data_dir": data_dir, "bad_images": spec.bad_images, "workers": spec.workers}
    source = load_images(data, spec.split, limit=spec.images, **opening)
    images = {"data": data, "split": spec.split, "data_dir": data_dir and str(data_dir), "images": spec.images}
    plan = CapturePlan(
        image_ids=tuple(source.ids),
        model=facts.model,
        variant=facts.variant,
        checkpoint_sha256=facts.sha256,
        config={
            "model_args": facts.options,
            "parameters": facts.parameters,
            "notes": list(facts.notes),
            "spec": asdict(pixels),
            "images": images,
            "class_names": list(source.class_names),
            "recipe": recipe,
        },
        versions={name: version(name) for name in ("torch", "timm", "attnprobe")},
        data=source.fingerprint,
        seed=spec.seed,
        device=device.type,
        settings=_settings(spec, selection),
    )

    def task(module: nn.Module, of: ImageSource, its: CapturePlan) -> Task:
        sites: tuple[Site, ...] = tuple(site for site in SITES if site in spec.kept)
        kept: dict[str, Any] = {"factors": factors, **{name: name in spec.kept for name in ("tokens", "values")}}
        recording = Recording(module.to(device), sites, selection=selection, **kept)
        return Task(Capture(recording, of, spec.batch_size), of, its)

    main = task(model, source, plan)
    if not (spec.untrained and facts.sha256):
        return main, None
    few = load_images(data, spec.split, limit=min(spec.untrained, len(source)), **opening)
    base = replace(plan, image_ids=tuple(few.ids), checkpoint_sha256="", data=few.fingerprint)
    return main, task(build_model(facts.model, seed=spec.seed, **facts.options), few, base)


def _settings(spec: CaptureSpec, selection: Selection) -> dict[str, Any]:
    """The options that decide which numbers are stored. What is not chosen is left out, as in plans of old."""
    settings: dict[str, Any] = {"what": list(spec.kept), "autocast": False}
    if spec.store == "qk":
        settings["store"] = "qk"
    if not selection.everything:
        layers = None if selection.layers is None else sorted(selection.layers)
        settings |= {"layers": layers, "heads": selection.heads, "queries": selection.queries}
    return settings


# --- measuring without maps ----------------------------------------------------------------------------------------


def _slices(task: Task, folder: Path, metrics: Sequence[str] | None, rank: Rank, claims: Claims) -> list[Path]:
    """The files of all slices, of which this process has made those that nobody else is at."""
    n = len(task.source)
    paths = [folder / f"s{k:06d}.npz" for k in range(-(-n // SLICE))]
    fs.make_folder(folder)
    _same_plan(folder / "plan.json", {**task.plan.facts(), "metrics": list(metrics or ())})
    mine = Claims(claims.folder / folder.name)
    try:
        with progress(f"measure {task.plan.model}", n, done=SLICE * sum(path.exists() for path in paths)) as advance:
            for k in shared_out(rank, len(paths), mine, lambda k: paths[k].exists()):
                images = range(k * SLICE, min(n, (k + 1) * SLICE))
                data = measure_slice(_maps_of(task, images, advance), metrics)
                with suppress(FileExistsError):  # another process was first
                    fs.write_file(paths[k], data)
        if all(path.exists() for path in paths):
            _check_counts(task, paths)
            mine.remove()
    finally:
        mine.release_all()
    return paths


def _check_counts(task: Task, slices: list[Path]) -> None:
    """Raises MapsFileError unless the slices are about the images of the task, all of them and in order."""
    for k, path in enumerate(slices):
        ids = list(task.plan.image_ids[k * SLICE : (k + 1) * SLICE])
        if (found := images_of(path.read_bytes())) != ids:
            raise MapsFileError(
                f"{path} is about {len(found)} images where {len(ids)} were to be measured. Remove it and run the same "
                "command again."
            )


def _maps_of(task: Task, images: range, advance: Advance) -> Iterator[Any]:
    for batch in _every_image(task, images):
        advance(batch[0].n_images)
        while batch:
            yield batch.pop(0)


def _same_plan(path: Path, facts: dict[str, Any]) -> None:
    text = canonical(facts).encode()
    if not path.exists():
        with suppress(FileExistsError):  # another process was first
            fs.write_file(path, text)
    if path.read_bytes() != text:
        raise InputError(f"{path.parent} was begun with another model, images, options or metrics; choose another -o.")


def _examined(
    task: Task, slices: list[Path], metrics: Sequence[str] | None, baselines: dict[str, list[Path]], model: Path,
    group: str | None,
) -> Examined:  # fmt: skip
    others = {name: map(Path.read_bytes, paths) for name, paths in baselines.items()}
    measurements = measure_slices(map(Path.read_bytes, slices), metrics, baselines=others, group=group)
    layers, grid = layers_and_grid(slices[0].read_bytes())
    plan = task.plan
    info = {"model": plan.model, "variant": plan.variant, "data": plan.data, "seed": plan.seed, "device": plan.device,
            "checkpoint_sha256": plan.checkpoint_sha256, "versions": dict(plan.versions),
            "n_images": len(task.source), "parameters": plan.config["parameters"]}  # fmt: skip
    return Examined(
        name=Run.of(model).path.stem or plan.model,
        measurements=measurements,
        info=info,
        layers=layers,
        grid=grid,
        certificate=task.capturing.certificate.to_dict(),
        notes=doubts(measurements),
    )


def doubts(measurements: Mapping[str, Measurement]) -> tuple[str, ...]:
    """What a reader must know of images that do not stand for themselves: copies, and what looks like some."""
    copied = dict.fromkeys(copies_in_words(m) for m in measurements.values())
    return tuple(filter(None, (*copied, alike_in_words(list(measurements.values())))))


def _default_maps(model: Path) -> Path:
    return run.maps if (run := Run.of(model)).checkpoints.is_dir() else Path(f"{model.stem}.h5")
