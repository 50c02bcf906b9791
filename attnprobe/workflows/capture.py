"""A model and images -> a maps file, or measurements without one; by one process, or by several under torchrun."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import cached_property, partial
from importlib.metadata import version
from itertools import tee, zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import nn

from attnprobe.capturing import Capture, Recording
from attnprobe.capturing.selection import Selection
from attnprobe.core.devices import own_gpu
from attnprobe.core.errors import InputError, MapsFileError
from attnprobe.core.examined import Examined
from attnprobe.core.images import ImageSource
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.spec import CaptureSpec
from attnprobe.data import load_images
from attnprobe.io import fs
from attnprobe.io.progress import Advance, progress
from attnprobe.io.ranks import Claims, Rank, held
from attnprobe.io.reference import UserImages
from attnprobe.io.run import Run, untrained_maps
from attnprobe.metrics.engine.choose import choose
from attnprobe.metrics.engine.sink import MeasureSink
from attnprobe.metrics.engine.slices import layers_and_grid, measure_slices
from attnprobe.metrics.engine.units import doubts
from attnprobe.models import build_model, input_spec
from attnprobe.models.describe import resolve_model
from attnprobe.reports import write_report
from attnprobe.store.plan import CapturePlan
from attnprobe.store.stored import StoredMaps
from attnprobe.store.writer import MapWriter
from attnprobe.training import pick_device
from attnprobe.workflows.lockstep import Replica
from attnprobe.workflows.trial import recipe_of, run_images


@dataclass(frozen=True)
class Task:
    """One model and its images, ready to be captured; `name` stands for it in a report."""

    name: str
    module: nn.Module
    device: torch.device
    plan: CapturePlan
    capture: Callable[[nn.Module], Capture]

    @cached_property
    def capturing(self) -> Capture:
        """The capture; the model is on the device from now on, until `release`."""
        return self.capture(self.module)

    def release(self) -> None:
        """Leave the device to the next model."""
        self.__dict__.pop("capturing", None)
        self.module.to("cpu")


def capture_file(spec: CaptureSpec, *, out: Path | None = None) -> Path:
    """Capture a model's attention into one HDF5 file; the same call resumes one that was stopped, or finds it done.

    Under torchrun each process captures its share of the shards, and the last one makes the file. Of a model with
    trained weights, `spec.untrained` images are also captured from the same architecture with initial weights, into
    NAME.untrained.h5, as a baseline.

    Args:
        out: the file; maps.h5 in the run, or MODEL.h5 here, if None.

    Returns:
        The path of the maps file; of its shards' folder where they are kept, or others are still at work.

    Raises:
        InputError: the file exists and holds another capture.
    """
    run = Run.of(Path(spec.model))
    out = Path(out or (run.maps if run.checkpoints.is_dir() else f"{Path(spec.model).stem}.h5"))
    replica = Replica.of_this_process(spec.shard)
    rank = replica.rank
    main, base = tasks(spec, rank, replica=replica)
    dtype, keep_shards = spec.stored_dtype, spec.keep_shards or rank.local_world < rank.world

    def is_done(task: Task, path: Path) -> bool:
        return rank.alone and not spec.overwrite and _is_stored(task.plan, dtype, path)

    done = replica.told(is_done(main, out))
    if out.exists() and rank.alone and not spec.overwrite and not done:
        raise InputError(
            f"{out} exists, of another model, images or options. Choose another output with -o, or replace it with "
            "--overwrite."
        )

    def store(task: Task, path: Path, overwrite: bool) -> Path:
        options: dict[str, Any] = {"dtype": dtype, "overwrite": overwrite, "keep_shards": keep_shards}
        with replica.sink(lambda: MapWriter(path, task.plan, rank, **options)) as sink:
            fill(sink, task, f"capture {path.name}")
            return sink.close(task.capturing.certificate.to_dict())

    if base is not None and not replica.told(is_done(base, untrained_maps(out))):
        # First, so that a command that was stopped here can be run again.
        store(base, untrained_maps(out), overwrite=rank.alone or spec.overwrite)
        base.release()
    return out if done else store(main, out, spec.overwrite)


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
    replica, out = Replica.of_this_process(spec.shard), Path(out)
    rank = replica.rank
    main, base = tasks(spec, rank, replica=replica)
    with held(out), fs.as_work_error(f"measuring into {out}"):

        def measure(task: Task, folder: Path) -> list[Path]:
            make = partial(MeasureSink, folder, rank, task.plan.facts(), task.plan.image_ids, metrics)
            with replica.sink(make) as sink:
                fill(sink, task, f"measure {task.plan.model}")
                return sink.close()

        untrained = []
        if base is not None:
            untrained = measure(base, out / "untrained")
            base.release()
        slices = measure(main, out / "slices")
        if replica.size > 1:
            _ = main.capturing.certificate  # forward passes, which all of a replica run
        if not replica.leads or not slices or (base is not None and not untrained):
            return [], []
        report = Claims(out / "claims")
        try:
            if not report.take("report"):
                return [], []
            baselines = {"untrained": map(Path.read_bytes, untrained)} if untrained else {}
            examined = _examined(main, slices, metrics, baselines=baselines, group=group)
            files = write_report([examined], out, formats)
            report.remove()
            return [examined], files
        finally:
            report.release_all()


def fill(sink: MapWriter | MeasureSink, task: Task, title: str) -> None:
    """Capture into a sink what it lacks and no other process is at, part by part: plan -> claim -> part -> commit.

    A part is a fixed run of images. What is pinned when a sink begins does not depend on who begins it, so any number
    of processes may fill one, at once or one after the other, and the result is the same to the bit.
    """
    plan = task.plan
    with progress(f"check {plan.model}", 1):  # the certificate takes several forward passes
        capturing = task.capturing
        if not sink.begun:
            sink.begin(capturing.sample(), capturing.fitting)
    n, missing = len(plan.image_ids), sum(map(len, sink.pending()))
    if missing and sink.batch_images is None:  # other batches would give other last bits
        raise InputError(f"{sink.folder} was begun by an older attnprobe; remove it, or choose another -o.")
    # The loader claims parts ahead of the sink, so that its workers need not stop between two of them.
    to_load, to_write = tee(sink.parts())
    batches = capturing.batches(to_load, sink.batch_images)
    with progress(title, n, done=n - missing) as advance:
        for part in to_write:
            sink.write(part, _batches_of(plan, part, batches, advance))


def _batches_of(
    plan: CapturePlan, part: range, batches: Iterator[list[AttentionMaps]], advance: Advance
) -> Iterator[list[AttentionMaps]]:
    """The next batches, of the images of a part, and of no image fewer.

    Raises:
        InputError: an image that could be opened when the capture began gave no pixels now. Left out without a word
            it would be counted among the measured ones.
    """
    expected = plan.image_ids[part.start : part.stop]
    while expected:
        batch = next(batches, None)
        ids = batch[0].image_ids if batch else ()
        missing = next((name for name, got in zip_longest(expected[: len(ids) or 1], ids) if name != got), None)
        if missing is not None or batch is None:
            raise InputError(
                f"image {missing!r} of {plan.data} could be opened when the capture began, but not be decoded. Repair "
                "or remove it, then capture into a new output."
            )
        expected = expected[len(ids) :]
        advance(len(ids))
        yield batch
        del batch  # or it would be held while the next one is computed


def tasks(spec: CaptureSpec, rank: Rank, replica: Replica | None = None) -> tuple[Task, Task | None]:
    """The capture, and that of its untrained baseline if the model has trained weights.

    Args:
        replica: of this process; by itself if None.
    """
    replica = replica or Replica(rank)
    factors = spec.store == "qk"
    if factors and not {"weights", "effective"} & set(spec.kept):
        raise InputError("queries and keys are stored in place of maps; ask for weights or effective, too.")
    selection = Selection.parse(spec.layers, spec.heads, spec.queries)
    how = {name: getattr(spec, name) for name in ("img_size", "seed", "allow_nonfinite", "initial")}
    model, facts = resolve_model(spec.model, spec.architecture, **how)
    for note in facts.notes:
        warnings.warn(note, stacklevel=3)
    device = pick_device(spec.device)
    device = device if rank.alone and replica.size == 1 else own_gpu(device, rank.local)
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
        kept: dict[str, Any] = {"factors": factors, "allow_missing": spec.allow_missing}
        kept["amp"] = torch.bfloat16 if spec.amp else None
        kept |= {name: name in spec.kept for name in ("tokens", "values")}

        def capture(model: nn.Module) -> Capture:
            there = replica.placed(model, device)
            return Capture(
                Recording(there, spec.sites, selection=selection, **kept), of, spec.batch_size, replica.size == 1
            )

        return Task(Run.of(Path(spec.model)).path.stem or its.model, module, device, its, capture)

    main = task(model, source, plan)
    if not (spec.untrained and facts.sha256) or facts.model.startswith("onnx:"):  # a graph has trained weights alone
        return main, None
    few = load_images(data, spec.split, limit=min(spec.untrained, len(source)), **opening)
    base = replace(plan, image_ids=tuple(few.ids), checkpoint_sha256="", data=few.fingerprint)
    return main, task(build_model(facts.model, seed=spec.seed, **facts.options), few, base)


def _settings(spec: CaptureSpec, selection: Selection) -> dict[str, Any]:
    """The options that decide which numbers are stored. What is not chosen is left out, as in plans of old."""
    settings: dict[str, Any] = {"what": list(spec.kept), "autocast": spec.amp or False}
    if spec.store == "qk":
        settings["store"] = "qk"
    if not selection.everything:
        layers = None if selection.layers is None else sorted(selection.layers)
        settings |= {"layers": layers, "heads": selection.heads, "queries": selection.queries}
    return settings


def _examined(task: Task, slices: list[Path], metrics: Sequence[str] | None, **more: Any) -> Examined:
    """Content of a report on the slices of a task; `more` as for `measure_slices`."""
    measurements = measure_slices(map(Path.read_bytes, slices), metrics, **more)
    layers, grid = layers_and_grid(slices[0].read_bytes())
    plan = task.plan
    names = ("model", "variant", "data", "seed", "device", "checkpoint_sha256", "versions")
    info = {name: getattr(plan, name) for name in names}
    return Examined(
        name=task.name,
        measurements=measurements,
        info={**info, "n_images": len(plan.image_ids), "parameters": plan.config["parameters"]},
        layers=layers,
        grid=grid,
        certificate=task.capturing.certificate.to_dict(),
        notes=doubts(measurements),
    )


def _is_stored(plan: CapturePlan, dtype: str, path: Path) -> bool:
    """True if the file is there and is what the plan asks for."""
    with suppress(MapsFileError, OSError), StoredMaps.open(path) as stored:
        return stored.is_of(plan) and stored.attrs["dtype"] == dtype
    return False
