"""The report of one or several maps files, and the conditions on it that fail a build."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from attnprobe.core.errors import InputError
from attnprobe.core.examined import Examined
from attnprobe.core.spec import ReportSpec
from attnprobe.io import fs
from attnprobe.io.config import parse_settings
from attnprobe.io.reference import UserImages
from attnprobe.io.remote import place
from attnprobe.io.run import Run
from attnprobe.metrics import atlases
from attnprobe.metrics.engine.choose import choose
from attnprobe.reports import write_report
from attnprobe.reports.gate import Condition, Outcome, check
from attnprobe.reports.kinds import checked_bars
from attnprobe.reports.numbers import neighbour_means, neighbours
from attnprobe.stats.images_needed import images_needed
from attnprobe.workflows.measure import examine_all

CURVE_RESAMPLES = 400
"""Resamples for each number of images of a precision curve."""


def report(spec: ReportSpec) -> tuple[list[Examined], list[Path]]:
    """Examine maps files and write the report of all of them side by side.

    Returns:
        The examined models, and the files written into the folder `spec.out`.

    Raises:
        InputError: nothing to report on, an unknown metric, condition or kind of collapse, or, with `verify_drops`,
            maps without a run.
        WorkError: the disk is full or fails.
    """
    out = place(spec.out, output=True)
    fs.check_folder(out)
    if not spec.maps:
        raise InputError("nothing to report on; give one maps file or run, or several.")
    runs = [_run_of(Path(path)) for path in spec.maps] if spec.verify_drops else []
    needed = {name for condition in map(Condition.parse, spec.fail_on) for name in condition.needs}
    if spec.verify_drops:
        from attnprobe.workflows.candidates import METRICS as CANDIDATE_METRICS  # late: it needs models

        needed |= {*CANDIDATE_METRICS}
    metrics = spec.metrics or ("default", "atlas")
    metrics = (*metrics, *sorted(needed - {metric.name for metric in choose(metrics)[0]}))
    bars, user = checked_bars(parse_settings(spec.bars)), UserImages(spec.data, spec.data_dir)
    examined = [
        _explored(replace(e, notes=(*spec.notes, *e.notes), bars=bars))
        for e in examine_all(spec.maps, metrics=metrics, user=user, group=spec.group)
    ]
    if spec.verify_drops:
        examined = [_verified(e, run, spec.tolerance, user) for e, run in zip(examined, runs, strict=True)]
    with fs.as_work_error(f"writing the report into {out}"):
        fs.make_folder(out)
        return examined, write_report(examined, out, spec.formats)


def gate(examined: Sequence[Examined], fail_on: Sequence[str]) -> list[Outcome]:
    """Outcomes of conditions such as "similar_blocks>3" on every run; see `attnprobe.reports.gate`."""
    return check(examined, [Condition.parse(text) for text in fail_on])


def _explored(e: Examined) -> Examined:
    """The model with the types of its heads, and the precision of its numbers."""
    precision = {}
    for key, number, of in (("similar_blocks", None, "similar blocks"),
                            ("layer_similarity_centred", neighbour_means, "centred cosine of neighbours")):  # fmt: skip
        m = e.measurements.get(key)
        if m is None or (number is not None and not neighbours(m).any()):
            continue
        if m.per_image is not None and m.n_images > 1 and len(e.layers) > 1:
            found = images_needed(m, None if number is None else number(m), resamples=CURVE_RESAMPLES)
            if math.isfinite(found.value):  # a layer without a finite value has no mean with its neighbour
                precision[key] = replace(found, of=of)
    return replace(e, measurements=e.measurements.plus(atlases(e.measurements)), precision=precision)


def _run_of(path: Path) -> Path:
    """The run that maps belong to, which has the model."""
    run = path if path.is_dir() else path.parent
    if not Run(run).config.exists():
        from attnprobe.workflows.candidates import command_of_maps  # late: it needs models

        raise InputError(f"{path} is not of a run, so there is no model at hand: {command_of_maps(path)}.")
    return run


def _verified(e: Examined, run: Path, tolerance: float, user: UserImages) -> Examined:
    """The model with the evidence of its ablations, and the importance of heads among its measurements."""
    from attnprobe.workflows.ablate import evidence_of

    sha = e.info.get("checkpoint_sha256", "")
    evidence = evidence_of(run, e.measurements, sha256=sha, tolerance=tolerance, data=user.data, data_dir=user.data_dir)
    return replace(e, evidence=evidence, measurements=e.measurements.plus(evidence.importance))
