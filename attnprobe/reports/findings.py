"""Findings of a model: every kind of collapse judged, in an order in which nothing is reported twice."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Measurement, Measurements
from attnprobe.core.text import blocks_text
from attnprobe.reports.finding import Finding, bar_of, cannot_say, judged, missing
from attnprobe.reports.kinds import KINDS, Kind
from attnprobe.reports.levels import Levels, diagonal, levels
from attnprobe.reports.repetition import repetition
from attnprobe.stats.alarms import FEWEST_KEYS


def _needless_heads(m: Measurement) -> Levels:
    """(heads - effective heads) / (heads - 1); none where there is one head."""
    heads = m.mean.shape[1]
    of = max(heads - 1, 1)

    def share(effective: object) -> np.ndarray:
        known = np.array(effective, float) if effective else np.full(len(m.mean), np.nan)
        return (heads - known) / of

    fresh = m.baselines["untrained"].summary if "untrained" in m.baselines else {}
    ends = np.array(m.summary.get("effective_heads_ci") or [[None, None]] * len(m.mean), float)
    mean = share(m.summary.get("effective_heads"))
    high, low = ((heads - end) / of for end in ends.T)
    return Levels(mean, low, high, share(fresh.get("effective_heads")), m.block_numbers, m.n_images)


def _n_keys(entropy: Measurement | None) -> int | None:
    """Number of keys, by the entropy of uniform attention; None where it was not measured."""
    if entropy is None or "uniform" not in entropy.baselines:
        return None
    return round(math.exp(float(entropy.baselines["uniform"].mean.max())))  # it was measured up to rounding


def _most(m: Measurement) -> float | None:
    """Entropy of uniform attention, above which there is none; None where it was not measured."""
    n_keys = _n_keys(m)
    return None if n_keys is None else math.log(n_keys)


def _too_few_keys(e: Examined, stage: str | None = None) -> str:
    """Reason why maps of a stage, or of any, cannot be judged at all; "" if they can."""
    entropies = e.measurements.select("row_entropy", stage=stage)
    known = [n for n in map(_n_keys, entropies) if n is not None]
    if not known or max(known) >= FEWEST_KEYS:
        return ""
    return f"attention over {max(known)} token{'s' if max(known) > 1 else ''} leaves no choice to judge"


def _with_choice(e: Examined) -> Measurements:
    """The measurements, without those of maps in stages whose maps cannot be judged."""
    few = {stage for stage in {m.stage for m in e.measurements.values()} if _too_few_keys(e, stage)}
    kept = {name: m for name, m in e.measurements.items() if m.of != "maps" or m.stage not in few}
    return Measurements(kept, e.measurements.facts, e.measurements.refusals)


NUMBERS: dict[str, Callable[[Measurement], Levels]] = {
    "near_uniform": lambda m: levels(m).then(lambda x: np.exp(x - m.baselines["uniform"].mean.mean())),
    "entropy_collapse": lambda m: levels(m).within((0.0, _most(m))).then(np.exp),
    "image_independent": lambda m: diagonal(m).then(lambda x: 1 - x),
    "head_redundancy": _needless_heads,
}
"""Numbers of each kind that is not judged by the levels of its metric as they are; repetition needs several metrics."""

EXCUSED = {
    "near_uniform": (),
    "sink_collapse": (),
    "entropy_collapse": ("sink_collapse",),
    "rank_collapse": ("near_uniform", "sink_collapse"),
    "image_independent": ("near_uniform", "sink_collapse"),
    "head_redundancy": ("near_uniform", "sink_collapse"),
}
"""Kinds that are judged in this order, and those that explain them: near-uniform maps have equal rows in every image,
and queries that all attend to one token have no entropy. Named once."""


def findings(e: Examined) -> tuple[Finding, ...]:
    """The finding on each kind, in the order of `KINDS`, over the stages that images pass one after the other."""
    e = replace(e, measurements=e.measurements.of_network())
    found: dict[str, Finding] = {}
    if not (few := _too_few_keys(e)):
        e = replace(e, measurements=_with_choice(e))
    for kind in sorted(KINDS, key=lambda kind: [*EXCUSED, kind.name].index(kind.name)):
        if kind.of_maps and few:
            found[kind.name] = cannot_say(kind, bar_of(e, kind), few)
        elif kind.name != "repetition":
            found[kind.name] = _finding(e, kind, found)
    repeating: frozenset[int] = frozenset()
    if not few:
        found["repetition"], repeating = repetition(e, found)
    if repeating:  # reported where it is explained, and not counted as repetition
        near = found["near_uniform"]
        m = e.measurements.prefer("map_overlap", "effective", "weights")
        alike = "" if m is None else " of their stage" if m.network else " of as many heads" if m.together else ""
        verb = f"overlap{'s' if len(repeating) == 1 else ''}"
        words = f"so {len(repeating)} of them {verb} with the previous block{alike}"
        found["near_uniform"] = replace(near, detail="; ".join(filter(None, (near.detail, words))))
    return tuple(found[kind.name] for kind in KINDS)


def _levels(e: Examined, kind: Kind, m: Measurement) -> Levels:
    """The numbers of a kind in one stage."""
    numbers = NUMBERS.get(kind.name, levels)(m)
    prefix = None if kind.name != "sink_collapse" else e.measurements.get("prefix_mass", site=m.site, stage=m.stage)
    if prefix is None:
        return numbers
    n_tokens = prefix.mean.shape[-1]
    return numbers.or_larger(levels(prefix).then(lambda x: n_tokens * x))  # on all prefix tokens together


def _finding(e: Examined, kind: Kind, found: Mapping[str, Finding]) -> Finding:
    m = e.measurements.prefer(kind.metric, "weights", "effective")
    why = missing(m, kind.metric, e.measurements.refusals)
    if m is None or why:
        return cannot_say(kind, bar_of(e, kind), why)
    if kind.name == "near_uniform" and "uniform" not in m.baselines:
        return cannot_say(kind, bar_of(e, kind), "the uniform baseline was not measured")
    numbers = Levels.joined([_levels(e, kind, its) for its in e.measurements.in_network(m)])
    changed = kind.of_maps and m.site == "weights" and not m.is_effective
    details = ["of the softmax, which this variant changes before V"] if changed else []
    if len(numbers.numbers) < sum(map(len, m.network.values())):
        details.append(f"judged in {blocks_text(numbers.numbers)} alone")
    detail = "; ".join(details)
    excused = {found[name].words: frozenset(found[name].blocks) for name in EXCUSED.get(kind.name, ())}
    return judged(kind, bar_of(e, kind), numbers, excused, detail)
