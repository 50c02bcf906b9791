"""The report of one or several maps files, and the conditions on it that fail a build."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from attnprobe.core.errors import InputError
from attnprobe.core.evidence import TOLERANCE
from attnprobe.core.examined import Examined
from attnprobe.io import fs
from attnprobe.io.reference import NOT_SAID, UserImages
from attnprobe.io.run import Run
from attnprobe.metrics import atlases
from attnprobe.metrics.engine.choose import choose
from attnprobe.reports import write_report
from attnprobe.reports.gate import Condition, Outcome, check
from attnprobe.reports.kinds import checked_bars
from attnprobe.reports.numbers import neighbour_means
from attnprobe.stats.images_needed import images_needed
from attnprobe.workflows.ablate import METRICS as SAY_WHAT_COULD_GO
from attnprobe.workflows.ablate import evidence_of
from attnprobe.workflows.measure import examine_all

CURVE_RESAMPLES = 400
"""For each number of images of the curve that says how many are enough."""


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
