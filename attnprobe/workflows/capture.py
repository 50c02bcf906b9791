"""A model and images -> a maps file, or measurements without one; by one process, or by several under torchrun."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import tee, zip_longest
from pathlib import Path
from typing import Any

from attnprobe.core.errors import InputError, MapsFileError, option
from attnprobe.core.examined import Examined
from attnprobe.core.maps import AttentionMaps
from attnprobe.core.spec import KEEP_VALUES, CaptureSpec
from attnprobe.data.order import ListedImages
from attnprobe.io import fs
from attnprobe.io.progress import Advance, progress
from attnprobe.io.ranks import Claims, Rank, held
from attnprobe.io.remote import RemotePath, place
from attnprobe.io.run import Run, untrained_maps
from attnprobe.metrics.engine.choose import choose
from attnprobe.metrics.engine.sink import MeasureSink
from attnprobe.metrics.engine.slices import Skipped, answers_of, layers_and_grid, measure_slices
from attnprobe.metrics.engine.units import doubts
from attnprobe.reports import write_report
from attnprobe.store.parts import parts_of, write_certificate
from attnprobe.store.plan import CapturePlan
from attnprobe.store.stored import StoredMaps
from attnprobe.store.writer import MapWriter
from attnprobe.workflows.lockstep import Replica
from attnprobe.workflows.measured import facts_of
from attnprobe.workflows.task import Task, tasks


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
    out, replica = maps_file(spec, out), Replica.of_this_process(spec.shard)
    rank = replica.rank
    shared = out.with_suffix(".images") if rank.job and not isinstance(out, RemotePath) else None
    main, base = tasks(spec, rank, replica, shared, scan=spec.bad_images == "skip")
    dtype, keep_shards = spec.stored_dtype, spec.keep_shards or rank.local_world < rank.world

    def state(task: Task, path: Path) -> tuple[bool, bool]:
        """True if the file is there and holds this capture; and if nothing is left to be removed, either.

        A process that was killed when the file had its name has left shards, which whoever comes next removes.
        """
        stored = rank.alone and not spec.overwrite and _is_stored(task.plan, dtype, path)
        return replica.told((stored, stored and not (parts_of(path) / "plan.json").exists()))

    stored, done = state(main, out)
    if out.exists() and rank.alone and not spec.overwrite and not stored:
        raise InputError(
            f"{out} exists, of another model, images or options. Choose another output, or replace it with "
            f"{option('overwrite', python='overwrite=True')}."
        )

    def store(task: Task, path: Path, overwrite: bool) -> Path:
        options: dict[str, Any] = {"dtype": dtype, "overwrite": overwrite, "keep_shards": keep_shards}
        with replica.sink(lambda: MapWriter(path, task.plan, rank, **options)) as sink:
            fill(sink, task, f"capture {path.name}")
            return sink.close(task.capturing.certificate.to_dict())

    if base is not None and not state(base, untrained_maps(out))[1]:
        # First, so that a command that was stopped here can be run again.
        replacing = rank.alone and not isinstance(out, RemotePath)
        store(base, untrained_maps(out), overwrite=replacing or spec.overwrite)
        base.release()
    made = out if done else store(main, out, spec.overwrite)
    if made == out and shared is not None:
        shared.unlink(missing_ok=True)
    return made


def maps_file(spec: CaptureSpec, out: Path | None) -> Path:
    """The file of a capture: as the user names it, else maps.h5 in the run, or MODEL.h5 here.

    Raises:
        InputError: it is a folder.
    """
    run = Run.of(Path(spec.model))
    file = place(out or (run.maps if run.checkpoints.is_dir() else f"{Path(spec.model).stem}.h5"), output=True)
    if not isinstance(file, RemotePath) and file.is_dir():
        raise InputError(f"{file} is a folder; the output is a file name that ends in .h5, such as {file / 'maps.h5'}.")
    return file


def measure_live(
    spec: CaptureSpec,
    *,
    out: Path,
    metrics: Sequence[str] | None = None,
    formats: Sequence[str] = ("html", "json", "csv", "md"),
    group: str | None = None,
    keep_values: int = KEEP_VALUES,
) -> tuple[list[Examined], list[Path]]:
    """Measure a model's attention and report on it without storing maps; memory and disk do not grow with images.

    Numbers are those of a float32 maps file of the same images. The same call resumes one that was stopped; under
    torchrun each process measures its share, and the last one writes the report.

    Args:
        out: folder of the report, and of `slices/`, the values of every metric on each image.
        metrics: names and settings, see `attnprobe.metrics.engine.choose`; the default ones that fit if None.
        formats: of the report, see `attnprobe.reports.write_report`.
        group: regular expression in image ids; images with the same match count once together.
        keep_values: images up to which the values of each are kept. Of more, sums over all and over resamples of them
            are, and the values of a fixed subset of so many.

    Returns:
        What was examined, and the files written; nothing where others are still at work.
    """
    choose(metrics)
    if keep_values < 1:
        raise InputError(f"keep_values {keep_values} must be 1 image or more.")
    replica, out = Replica.of_this_process(spec.shard), place(out, output=True)
    rank = replica.rank
    shared = out / "images.list" if rank.job and not isinstance(out, RemotePath) else None
    main, base = tasks(spec, rank, replica, shared)
    with held(out), fs.as_work_error(f"measuring into {out}"):
        skipped = Skipped()

        def measure(task: Task, folder: Path) -> list[Path]:
            with replica.sink(partial(measure_sink, task, folder, rank, metrics, keep_values, group)) as sink:
                fill(sink, task, f"measure {task.plan.model}")
                files, left_out = sink.close(), sink.skipped
                certificate = task.capturing.certificate.to_dict()  # forward passes, which all of a replica run
                if files and replica.leads:
                    write_certificate(folder, certificate)
                if task is main:
                    skipped.add(left_out.names, left_out.n)
                return files

        untrained = []
        if base is not None:
            untrained = measure(base, slices_of(out, untrained=True))
            base.release()
        slices = measure(main, slices_of(out))
        if not replica.leads or not slices or (base is not None and not untrained):
            return [], []
        report = Claims(out / "claims")
        try:
            if not report.take("report"):
                return [], []
            baselines = {"untrained": map(fs.read_regular, untrained)} if untrained else {}
            examined = _examined(main, slices, metrics, skipped, baselines=baselines, group=group)
            files = write_report([examined], out, formats)
            report.remove()
            if shared is not None:
                shared.unlink(missing_ok=True)
            return [examined], files
        finally:
            report.release_all()


def slices_of(out: Path, *, untrained: bool = False) -> Path:
    """The folder of the slices of a live measurement, or of its untrained baseline."""
    return out / ("untrained" if untrained else "slices")


def measure_sink(
    task: Task,
    folder: Path,
    rank: Rank,
    metrics: Sequence[str] | None = None,
    keep_values: int = KEEP_VALUES,
    group: str | None = None,
) -> MeasureSink:
    """The sink that measures a task, as every process of it must open it; arguments as of `measure_live`."""
    return MeasureSink(folder, rank, task.plan.facts(), task.plan.image_ids, metrics, keep_values, group)


def fill(sink: MapWriter | MeasureSink, task: Task, title: str) -> None:
    """Capture into a sink what it lacks and no other process is at, part by part: plan -> claim -> part -> commit.

    A part is a fixed run of images. What is pinned when a sink begins does not depend on who begins it, so any number
    of processes may fill one, at once or one after the other, and the result is the same to the bit.
    """
    n, missing = len(task.plan.image_ids), sum(map(len, begin(sink, task)))
    with progress(title, n, done=n - missing) as advance:
        write_parts(sink, task, sink.parts(), advance)


def begin(sink: MapWriter | MeasureSink, task: Task) -> list[range]:
    """Pin what a part is, unless another process has; the positions of the images of each part that is missing."""
    with progress(f"check {task.plan.model}", 1):  # the certificate takes several forward passes
        capturing = task.capturing
        if not sink.begun:
            sink.begin(capturing.sample(), capturing.fitting)
    missing = sink.pending()
    if missing and sink.batch_images is None:  # other batches would give other last bits
        raise InputError(f"{sink.folder} was begun by an older attnprobe; remove it, or choose another -o.")
    return missing


def write_parts(sink: MapWriter | MeasureSink, task: Task, parts: Iterator[range], advance: Advance) -> None:
    """Capture some parts into a sink that was begun."""
    # The loader asks for parts ahead of the sink, so that its workers need not stop between two of them.
    to_load, to_write = tee(parts)
    batches, may_skip = _Ahead(task.capturing.batches(to_load, sink.batch_images)), sink.may_skip
    for part in to_write:
        skipped = (Skipped(),) if may_skip else ()
        sink.write(part, _batches_of(task, part, batches, advance, *skipped), *skipped)


class _Ahead:
    """An iterator of batches that may be looked at before it is taken from."""

    def __init__(self, batches: Iterator[list[AttentionMaps]]) -> None:
        self._batches = batches
        self._seen: list[list[AttentionMaps] | None] = []

    @property
    def ids(self) -> tuple[str, ...]:
        """Images of the next batch; none at the end."""
        if not self._seen:
            self._seen.append(next(self._batches, None))
        batch = self._seen[0]
        return batch[0].image_ids if batch else ()

    def take(self) -> list[AttentionMaps]:
        """The next batch, which is held no more."""
        batch = self._seen.pop()
        assert batch, "there was one"
        return batch


def _batches_of(
    task: Task, part: range, batches: _Ahead, advance: Advance, skipped: Skipped | None = None
) -> Iterator[list[AttentionMaps]]:
    """The next batches, of the images of a part, and of no image fewer but those that the source says it left out.

    Args:
        skipped: takes the images that were left out; None where none may be.

    Raises:
        InputError: an image that could be opened when the capture began gave no pixels now. Left out without a word
            it would be counted among the measured ones.
    """
    plan, bad = task.plan, set[str]()
    expected = list(plan.image_ids[part.start : part.stop])
    while expected:
        ids = batches.ids  # asks for the batch: only now it is known what was left out before it
        if skipped is not None and isinstance(task.images, ListedImages):
            bad = set(task.images.bad)
        here = bool(ids) and ids[-1] in expected  # else it is of the next part, and none is left of this one
        stop = expected.index(ids[-1]) + 1 if here else len(expected)
        among, expected = expected[:stop], expected[stop:]
        there, found = tuple(name for name in among if name not in bad), ids if here else ()
        if there != found:
            missing = next(name for name, got in zip_longest(there, found) if name != got)
            raise InputError(
                f"image {missing!r} of {plan.data} could be opened when the capture began, but not be decoded. Repair "
                "or remove it, then capture into a new output."
            )
        if skipped is not None:
            skipped.add([name for name in among if name in bad])
        advance(len(among))
        if here:
            yield batches.take()


def _examined(task: Task, slices: list[Path], metrics: Sequence[str] | None, skipped: Skipped, **more: Any) -> Examined:
    """Content of a report on the slices of a task; `more` as for `measure_slices`."""
    seen = next(filter(None, (layers_and_grid(fs.read_regular(path)) for path in slices)), None)
    if seen is None:
        raise InputError(f"none of {skipped.n} images of {task.plan.data} can be read.")
    layers, grid = seen
    measurements = measure_slices(map(fs.read_regular, slices), metrics, **more)
    answers = answers_of(map(fs.read_regular, slices))
    plan = task.plan
    info = facts_of(plan.facts()) | answers.facts()
    return Examined(
        name=task.name,
        measurements=measurements,
        info={**info, "n_images": len(plan.image_ids) - skipped.n},
        layers=layers,
        grid=grid,
        certificate=task.capturing.certificate.to_dict(),
        class_names=tuple(plan.config["class_names"]),
        notes=(
            *filter(None, [skipped.in_words()]),
            *answers.missing(len(plan.config["class_names"])),
            *doubts(measurements),
        ),
    )


def _is_stored(plan: CapturePlan, dtype: str, path: Path) -> bool:
    """True if the file is there and is what the plan asks for."""
    with suppress(MapsFileError, OSError), StoredMaps.open(path) as stored:
        return stored.is_of(plan) and stored.attrs["dtype"] == dtype
    return False
