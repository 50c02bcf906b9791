"""A folder that `capture --stats-only` has filled, read again like a maps file: for `report` and `compare`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnprobe.core.errors import AttnprobeError, InputError, MapsFileError, option
from attnprobe.core.examined import Examined
from attnprobe.core.metric import Metric
from attnprobe.io import fs
from attnprobe.metrics import METRICS
from attnprobe.metrics.engine.choose import choose
from attnprobe.metrics.engine.sink import MOST_BYTES
from attnprobe.metrics.engine.slices import Skipped, answers_of, images_of, layers_and_grid, measure_slices
from attnprobe.metrics.engine.units import doubts
from attnprobe.store.parts import read_certificate

OF_PLAN = ("model", "variant", "data", "seed", "device", "checkpoint_sha256", "versions")
OF_CONFIG = ("parameters", "images", "spec", "named", "preparation")
"""Entries of a plan, and of its description of the capture, that a report has."""


def facts_of(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Facts that a report has of a capture, from its plan."""
    config = plan["config"]
    return {name: plan[name] for name in OF_PLAN} | {name: config[name] for name in OF_CONFIG if name in config}


def is_measured(folder: Path) -> bool:
    """True if it has measurements and no maps."""
    return (folder / "slices" / "plan.json").is_file()


def examine_measured(
    folder: Path, *, metrics: Sequence[str] | None = None, name: str | None = None, group: str | None = None
) -> Examined:
    """Content of a report on such a folder, without pictures and explorer; arguments as for `examine`.

    Raises:
        MapsFileError: it is unfinished or damaged.
        InputError: a metric that was not measured, or another `group` than values were folded by.
    """
    slices = _slices(folder / "slices")
    try:
        plan = fs.parse_json(fs.read_regular(folder / "slices" / "plan.json", MOST_BYTES))
        measured = [METRICS[one["name"]].with_settings(**{k: v for k, v in one.items() if k != "name"})
                    for one in plan["metrics"]]  # fmt: skip
        info = facts_of(plan)
        config, n_planned, folded_by = plan["config"], plan["n_images"], plan.get("group", group)
        skipped, n_images = Skipped(), 0
        for path in slices:
            _, n, its = images_of(path.read_bytes())
            skipped.add(its.names, its.n)
            n_images += n
        answers, class_names = answers_of(map(Path.read_bytes, slices)), tuple(config.get("class_names") or ())
        seen = next(filter(None, (layers_and_grid(path.read_bytes()) for path in slices)), None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, AttnprobeError):
            raise
        raise MapsFileError(f"{folder / 'slices'} is damaged: {error}. Measure again, into another folder.") from error
    if seen is None or n_images + skipped.n != n_planned:
        raise MapsFileError(
            f"{folder} is unfinished: {n_images + skipped.n} of {n_planned} images are measured. Run the same "
            "`attnprobe capture --stats-only` again to complete it."
        )
    if folded_by != group:
        by = option("group", repr(folded_by), python=f"group={folded_by!r}")
        raise InputError(f"{folder} was measured with {by}, by which its values were folded.")
    chosen = _chosen(measured, metrics, folder)
    untrained = _slices(folder / "untrained") if (folder / "untrained").is_dir() else []
    baselines = {"untrained": map(Path.read_bytes, untrained)} if untrained else {}
    measurements = measure_slices(map(Path.read_bytes, slices), chosen, baselines=baselines, group=group)
    return Examined(
        name=name or folder.name,
        measurements=measurements,
        info={**info, **answers.facts(), "n_images": n_images},
        layers=seen[0],
        grid=seen[1],
        certificate=read_certificate(folder / "slices") or {},
        class_names=class_names,
        notes=(
            *filter(None, [skipped.in_words()]),
            *answers.missing(len(class_names)),
            *doubts(measurements),
        ),
    )


def _slices(folder: Path) -> list[Path]:
    """Files of the slices, in order."""
    return sorted(folder.glob("s*.npz"))


def _chosen(measured: Sequence[Metric], wanted: Sequence[str] | None, folder: Path) -> list[Metric]:
    """Those of the measured metrics that are wanted; of sets of metrics those that there are."""
    if wanted is None:
        return list(measured)
    metrics, required = choose(wanted)
    names = {metric.name for metric in measured}
    if missing := sorted(required - names):
        raise InputError(f"{folder} has no {missing[0]}, only {', '.join(sorted(names))}; measure it again with that.")
    return [metric for metric in measured if metric.name in {one.name for one in metrics}]
