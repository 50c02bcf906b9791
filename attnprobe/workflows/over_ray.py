"""A capture whose parts Ray hands out: to one actor per GPU, or per CPU core, of a cluster or of this machine.

Plan, parts, commits and merge are those of a capture alone, so the file is, too. Ray places actors and notices their
death; a part whose actor died goes to the next one that is free, and a new actor takes the dead one's place. At the end
the same capture, alone, finds every part there and makes the file.
"""

import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

from attnprobe.core.errors import InputError, WorkError
from attnprobe.core.examined import Examined
from attnprobe.core.spec import CaptureSpec
from attnprobe.io.progress import progress
from attnprobe.io.ranks import Rank
from attnprobe.io.remote import RemotePath, place
from attnprobe.io.run import untrained_maps
from attnprobe.metrics.engine.choose import choose
from attnprobe.metrics.engine.sink import MeasureSink
from attnprobe.store.writer import MapWriter
from attnprobe.workflows.capture import (
    begin,
    capture_file,
    maps_file,
    measure_live,
    measure_sink,
    slices_of,
    write_parts,
)
from attnprobe.workflows.task import Task, tasks

TRIES = 4
"""Actors that may die of one part before it counts as what kills them."""


def capture_over_ray(spec: CaptureSpec, *, out: Path | None = None) -> Path:
    """`capture_file` with its parts spread over a Ray cluster: the one of RAY_ADDRESS, else this machine's cores.

    Every host must see the model, the images and the output under the same names, as on a shared file system or by
    URL. Called again after a stop, it resumes.

    Raises:
        InputError: ray is missing; or as `capture_file`.
        WorkError: actors died several times of one part.
    """
    return _spread(_absolute(spec), _everywhere(maps_file(spec, out)), None)


def measure_over_ray(spec: CaptureSpec, *, out: Path, **how: Any) -> tuple[list[Examined], list[Path]]:
    """`measure_live` with its slices spread over a Ray cluster; errors also as of `capture_over_ray`."""
    choose(how.get("metrics"))
    return _spread(_absolute(spec), _everywhere(place(out, output=True)), how)


def _spread(spec: CaptureSpec, out: Path, how: Mapping[str, Any] | None) -> Any:
    """What the capture alone returns, when actors have done its parts; `how` is of a live measurement."""
    if spec.shard > 1:
        raise InputError("--shard divides a model among processes of torchrun, not of Ray: leave --engine ray out.")
    ray = _ray()
    if not ray.is_initialized():
        try:
            ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
        except Exception as error:  # it raises whatever it meets
            why = " ".join(str(error).split())[:200]
            raise WorkError(f"Ray did not start ({why}). Check RAY_ADDRESS, or run the command again.") from error
    cluster = ray.cluster_resources()
    gpus = cluster.get("GPU", 0) if spec.device.startswith(("auto", "cuda")) else 0
    needs = {"num_cpus": 1, "num_gpus": 1 if gpus else 0}
    job = f"ray/{secrets.token_hex(8)}"
    actor = ray.remote(**needs)(Worker)
    crew = Crew(ray, lambda: actor.remote(spec, out, job, how), int(gpus or cluster.get("CPU", 1)))
    try:
        for base in (True, False):
            missing = crew.first(lambda worker, base=base: worker.begin.remote(base))
            title = f"{'measure' if how else 'capture'} {out.name}{' (untrained)' * base}"
            with progress(title, sum(map(len, missing))) as advance:
                for part in crew.each(missing, lambda worker, part, base=base: worker.write.remote(base, part)):
                    advance(len(part))
    finally:
        crew.dismiss()
    # Where the actors ran: this machine may lack what the model needs.
    finish = ray.remote(max_retries=TRIES, **needs)(_finish)
    return _result(ray, finish.remote(spec, out, how))


def _finish(spec: CaptureSpec, out: Path, how: Mapping[str, Any] | None) -> Any:
    return capture_file(spec, out=out) if how is None else measure_live(spec, out=out, **how)


class Worker:
    """An actor: one process of the capture, with the model on its device."""

    def __init__(self, spec: CaptureSpec, out: Path, job: str, how: Mapping[str, Any] | None) -> None:
        self._spec, self._out, self._how = spec, out, how
        self._rank = Rank(0, 2, 0, 2, job)  # Ray decides who does what, so the number does not matter
        self._main, self._base = tasks(spec, self._rank)
        self._open: tuple[bool, MapWriter | MeasureSink] | None = None

    def ready(self) -> None:
        """Nothing: the answer says that the actor runs."""

    def begin(self, base: bool) -> list[range]:
        """Positions of the images of each part that is missing, of the capture or of its untrained baseline."""
        task = self._task(base)
        return [] if task is None else begin(self._sink(base, task), task)

    def write(self, base: bool, part: range) -> None:
        """Capture a part; it is committed when this returns."""
        task = self._task(base)
        assert task is not None, "there are parts, so there is a task"
        sink = self._sink(base, task)
        if isinstance(sink, MapWriter) and not any(part.start in missing for missing in sink.pending()):
            return  # an actor that died after its commit had this part, and this one began later
        with progress("", len(part)) as advance:  # an actor has no terminal
            write_parts(sink, task, iter([part]), advance)
        if isinstance(sink, MapWriter):  # it commits in a thread
            sink.settle()

    def leave(self) -> None:
        """Let go of the output."""
        if self._open is not None:
            self._open[1].__exit__(InterruptedError)  # without merging
        self._open = None

    def _task(self, base: bool) -> Task | None:
        return self._base if base else self._main

    def _sink(self, base: bool, task: Task) -> MapWriter | MeasureSink:
        if self._open is None or self._open[0] != base:
            self.leave()
            if self._base is not None and not base:
                self._base.release()
            self._open = base, self._sink_of(base, task)
        return self._open[1]

    def _sink_of(self, base: bool, task: Task) -> MapWriter | MeasureSink:
        if self._how is not None:
            how = {name: self._how[name] for name in ("metrics", "keep_values", "group") if name in self._how}
            return measure_sink(task, slices_of(self._out, untrained=base), self._rank, **how)
        path, spec = untrained_maps(self._out) if base else self._out, self._spec
        return MapWriter(path, task.plan, self._rank, dtype=spec.stored_dtype, overwrite=spec.overwrite)


@dataclass
class Crew:
    """Actors, and what each is at: a part, or None while it starts.

    An actor gets its first part when it runs, so that none waits on one for which there is no room.
    """

    ray: Any
    hire: Callable[[], Any]
    n: int
    idle: list[Any] = field(default_factory=list)
    busy: dict[Any, tuple[Any, range | None]] = field(default_factory=dict)

    def first(self, call: Callable[[Any], Any]) -> Any:
        """The answer of an actor to one call; of another actor if it dies."""
        for _ in range(TRIES):
            if not self.idle:
                self._hire_up_to(1)
                self._next()
                continue
            try:
                return _result(self.ray, call(self.idle[0]))
            except self.ray.exceptions.RayActorError:
                self.idle.pop(0)
        raise WorkError(f"{TRIES} actors of Ray died before they had anything to do; see Ray's logs for the reason.")

    def each(self, parts: list[range], call: Callable[[Any, range], Any]) -> Iterator[range]:
        """The parts, as they are done."""
        left, tried, done = list(reversed(parts)), Counter[range](), 0
        self._hire_up_to(min(self.n, len(parts)))
        while done < len(parts):
            while left and self.idle:
                worker, part = self.idle.pop(), left.pop()
                self.busy[call(worker, part)] = worker, part
            part, died = self._next()
            if part is None:
                pass
            elif not died:
                done += 1
                yield part
            else:
                tried[part] += 1
                if tried[part] == TRIES:
                    raise WorkError(
                        f"{TRIES} actors of Ray died at images {part.start} to {part.stop - 1}: {died}. Finished parts "
                        "stay; give actors more memory, or fewer images per forward pass, and run the command again."
                    )
                left.append(part)
            self._hire_up_to(min(self.n, len(parts) - done))

    def dismiss(self) -> None:
        """Let all actors go."""
        leaving = [worker.leave.remote() for worker in self.idle]
        self.ray.wait(leaving, num_returns=len(leaving), timeout=60) if leaving else None
        for worker in chain(self.idle, (worker for worker, _ in self.busy.values())):
            self.ray.kill(worker)
        self.idle, self.busy = [], {}

    def _hire_up_to(self, n: int) -> None:
        for _ in range(n - len(self.idle) - len(self.busy)):
            worker = self.hire()
            self.busy[worker.ready.remote()] = worker, None

    def _next(self) -> tuple[range | None, str]:
        """What the next actor to end something was at, and why it died, "" if it did not."""
        (reference,), _ = self.ray.wait(list(self.busy), num_returns=1)
        worker, part = self.busy.pop(reference)
        try:
            _result(self.ray, reference)
        except self.ray.exceptions.RayActorError as error:
            return part, " ".join(str(error).split())[:200]
        self.idle.append(worker)
        return part, ""


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]
        import ray.exceptions  # pyright: ignore[reportMissingImports]

        return ray
    except ImportError as error:
        raise InputError(f'--engine ray needs ray ({error}): pip install "attnprobe[ray]".') from None


def _result(ray: Any, reference: Any) -> Any:
    """What a call came to; its own error, without Ray's account of it."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, Exception) else error) from None


def _everywhere(path: Path) -> Path:
    """A path that does not depend on where a process runs."""
    return path if isinstance(path, RemotePath) else path.absolute()


def _absolute(spec: CaptureSpec) -> CaptureSpec:
    """The same with paths that do not depend on where a process runs."""

    def whole(text: Any) -> Any:
        path = None if text is None else place(text)
        return str(path.absolute()) if path is not None and not isinstance(path, RemotePath) and path.exists() else text

    folder = None if spec.data_dir is None else Path(whole(spec.data_dir))
    return replace(spec, model=whole(spec.model), data=whole(spec.data), data_dir=folder)
