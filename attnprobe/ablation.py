"""Is what a report calls similar or redundant really not needed? It is taken away, and the accuracy measured."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from attnprobe import pipeline
from attnprobe.core import fs
from attnprobe.core.accuracy import accuracy_difference, accuracy_interval
from attnprobe.core.errors import InputError
from attnprobe.core.measurement import Measurement
from attnprobe.core.progress import Advance, progress
from attnprobe.core.run import Run
from attnprobe.models.ablate import Ablatable, Change
from attnprobe.reports.json_report import plain
from attnprobe.reports.sites import at_effective, at_softmax
from attnprobe.trial import Trial, open_trial

METRICS = ("similar_blocks", "head_divergence")
"""What says which blocks and heads are candidates."""

MOST_TRIED = 12
"""Up to so many candidates the curve tries all that are left at every step; beyond, it takes them in the order of what
each costs alone, since tries grow with the square."""


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """The model without these parts: which images, [image] bool, it gets right."""

    changes: tuple[Change, ...]
    right: np.ndarray


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What taking away costs.

    Attributes:
        whole: [image], bool: what the whole model gets right.
        single: each candidate alone: a block's map, its attention, the block; a head.
        curves: {"blocks", "heads"}: candidates taken away one after the other, the cheapest first.
        advice: where the candidates come from.
    """

    name: str
    whole: np.ndarray
    single: tuple[Tried, ...]
    curves: dict[str, tuple[Tried, ...]]
    advice: str

    def table(self) -> pd.DataFrame:
        """One row per try: curve ("" for singles), what is away, accuracy, gain over the whole model, intervals."""
        rows = [self._row("", tried) for tried in self.single]
        rows += [self._row(name, tried) for name, curve in self.curves.items() for tried in curve]
        return pd.DataFrame(rows)

    def _row(self, curve: str, tried: Tried) -> dict[str, Any]:
        right, n = int(tried.right.sum()), len(tried.right)
        low, high = accuracy_interval(right, n)
        gained, gained_low, gained_high = accuracy_difference(self.whole, tried.right)
        latest = tried.changes[-1]
        return {"curve": curve, "removed": len(tried.changes), "kind": latest.kind, "block": latest.block,
                "head": latest.head or None, "accuracy": right / n, "low": low, "high": high, "gained": gained,
                "gained_low": gained_low, "gained_high": gained_high, "n_images": n}  # fmt: skip

    def __str__(self) -> str:
        low, high = accuracy_interval(int(self.whole.sum()), len(self.whole))
        whole = f"whole model: top-1 {self.whole.mean():.2%} ({low:.2%}–{high:.2%}, {len(self.whole)} images)"
        lines = [self.advice, whole]
        lines += [_line(str(tried.changes[0]), self._row("", tried)) for tried in self.single]
        for name, curve in self.curves.items():
            lines.append(f"{name} taken away one after the other, the cheapest first:")
            lines += [
                _line(f"{len(tried.changes)}: {tried.changes[-1]}", self._row(name, tried), indent="  ")
                for tried in curve
            ]
        return "\n".join(lines)


def verify_drops(
    ref: Path | str,
    *,
    maps: Path | None = None,
    blocks: Sequence[int] | None = None,
    heads: Sequence[tuple[int, int]] | None = None,
    metrics: Sequence[str] = (),
    out: Path | None = None,
    **where: Any,
) -> tuple[Evidence, list[Path]]:
    """Measure the accuracy without each similar block and each redundant head, alone and together.

    Similar blocks are those of `similar_blocks` at what multiplies V; redundant heads all but the first of each group
    of `head_divergence`, as in the report.

    Args:
        ref: a run, a checkpoint, or the name of a model.
        maps: the maps file that says what is similar; the run's own if None.
        blocks, heads: other candidates than the report's, as (block, head) from 1, such as blocks that are not
            similar, for comparison; then no maps are needed.
        metrics: settings of the two metrics, as for `examine`.
        out: folder for drops.csv and drops.json; nothing is written if None.
        where: as for `open_trial`: on which images, and on what device.

    Raises:
        InputError: no maps, no candidates' model of timm's kind, or no labelled images.
        WorkError: `out` cannot be written.
    """
    if blocks is None and heads is None:
        found = _candidates(_maps_of(ref, maps), metrics)
        advice = (
            f"the report calls {len(found[0])} blocks similar to the one before and {len(found[1])} heads redundant"
        )
    else:
        found, advice = (list(blocks or ()), list(heads or ())), "blocks and heads as asked for"
    trial = open_trial(ref, **where)
    few = range(min(4, len(trial.images)))
    pixels = next(iter(trial.images.batches(4, device=trial.device, order=few))).pixels
    ablatable = Ablatable(trial.model.to(trial.device), pixels)
    singles = [Change(kind, block) for block in found[0] for kind in ("map", "attention", "block")]
    singles += [Change("head", *place) for place in found[1]]
    for change in singles:
        ablatable.check(change)
    steps = len(singles) + sum(_tries(len(candidates)) for candidates in found)
    with progress(f"verify {trial.facts.model}", steps) as advance:
        whole = trial.right(ablatable.module)
        single = tuple(_tried(trial, ablatable, [change], advance) for change in singles)
        curves = {
            name: _curve([tried for tried in single if tried.changes[0].kind == kind], trial, ablatable, advance)
            for name, kind in (("blocks", "block"), ("heads", "head"))
        }
    curves = {name: curve for name, curve in curves.items() if curve}
    evidence = Evidence(trial.facts.model, whole, single, curves, advice)
    return evidence, _write(evidence, out) if out is not None else []


def _maps_of(ref: Path | str, maps: Path | None) -> Path:
    found = maps or Run(Path(ref)).maps
    if not Path(found).exists():
        raise InputError(f"no maps at {found} that say what is similar: capture them, or name --blocks and --heads.")
    return Path(found)


def _candidates(maps: Path, metrics: Sequence[str]) -> tuple[list[int], list[tuple[int, int]]]:
    """Similar blocks, and redundant heads as (block, head)."""
    named = {metric.partition(":")[0] for metric in metrics}
    e = pipeline.examine(maps, metrics=[*metrics, *(m for m in METRICS if m not in named)], pictures=0)
    similar, heads = at_effective(e, "similar_blocks"), at_softmax(e, "head_divergence")
    blocks = list(similar.summary["similar"]) if similar is not None else []
    return blocks, list(_redundant(heads)) if heads is not None else []


def _redundant(m: Measurement) -> Iterator[tuple[int, int]]:
    """All but the first head of each group."""
    layers = m.coords.get("layer", range(1, len(m.mean) + 1))
    for layer, groups in zip(layers, m.summary.get("clusters", ()), strict=False):
        yield from ((layer, head) for group in groups for head in sorted(group)[1:])


def _tried(trial: Trial, ablatable: Ablatable, changes: Sequence[Change], advance: Advance) -> Tried:
    right = trial.right(ablatable.module, ablatable.without(changes))
    advance(1)
    return Tried(tuple(changes), right)


def _curve(alone: Sequence[Tried], trial: Trial, ablatable: Ablatable, advance: Advance) -> tuple[Tried, ...]:
    """The candidates taken away one after the other; see `MOST_TRIED`."""
    left = [tried.changes[0] for tried in sorted(alone, key=_cost)]
    if not left:
        return ()
    curve = [min(alone, key=_cost)]
    left.remove(curve[0].changes[0])
    while left:
        tried = left if len(alone) <= MOST_TRIED else left[:1]
        best = min((_tried(trial, ablatable, [*curve[-1].changes, change], advance) for change in tried), key=_cost)
        curve.append(best)
        left.remove(best.changes[-1])
    return tuple(curve)


def _cost(tried: Tried) -> int:
    return -int(tried.right.sum())


def _tries(n: int) -> int:
    """How many tries a curve of `n` candidates takes beyond each alone."""
    return n * (n - 1) // 2 if n <= MOST_TRIED else n - 1


def _line(words: str, row: dict[str, Any], indent: str = "") -> str:
    sure = "" if row["gained_low"] <= 0 <= row["gained_high"] else ", not by chance"
    return (
        f"{indent}{words}: {row['accuracy']:.2%} ({row['low']:.2%}–{row['high']:.2%}), {row['gained']:+.2%} "
        f"({row['gained_low']:+.2%} to {row['gained_high']:+.2%}){sure}"
    )


def _write(evidence: Evidence, out: Path) -> list[Path]:
    table = evidence.table()
    document = {
        "format": "attnprobe drops",
        "model": evidence.name,
        "candidates": evidence.advice,
        "accuracy": float(evidence.whole.mean()),
        "n_images": len(evidence.whole),
        "tries": plain(table.to_dict("records")),
    }
    texts: Iterable[tuple[str, str]] = (
        ("drops.csv", table.to_csv(index=False, lineterminator="\n")),
        ("drops.json", json.dumps(document, indent=1) + "\n"),
    )
    with fs.as_work_error(f"writing what dropping costs into {out}"):
        fs.make_folder(out)
        for name, text in texts:
            fs.write_file(out / name, text.encode(), overwrite=True)
    return [out / name for name, _ in texts]
