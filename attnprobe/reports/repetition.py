"""Blocks that repeat another one, and how: near uniform, the same in all images, or copying content."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Measurement
from attnprobe.core.text import blocks_text
from attnprobe.reports.finding import Finding, bar_of, cannot_say, judged, missing
from attnprobe.reports.kinds import CLOSER, CONTENT, LOCAL, SINK, kind_named
from attnprobe.reports.levels import Levels, levels
from attnprobe.reports.numbers import number

KIND = kind_named("repetition")

UNIFORM = "near uniform"
COPIES = "copying content"
SAME = "the same in all images"
UNKNOWN = "of unknown kind"


@dataclass(frozen=True, slots=True)
class Repeated:
    """One block that repeats another, both by position from 0."""

    block: int
    other: int
    overlap: float
    matched: bool
    kind: str = UNKNOWN
    elsewhere: float | None = None


def repetition(e: Examined, found: Mapping[str, Finding]) -> tuple[Finding, frozenset[int]]:
    """The finding on repetition: by the overlap with the previous block, else with heads matched, else with an earlier
    one.

    A block that repeats is near uniform if it is called so. With O0 the overlap with the other block of another image,
    it is the same in all images if O0 is above the bar, too, or O is not much larger (`CONTENT`); else it copies
    content. Near-uniform blocks overlap whatever they attend to, so they are reported and not counted.

    Returns:
        The finding, and the blocks that repeat another because they are near uniform.
    """
    bar, first = bar_of(e, KIND), e.measurements.prefer("map_overlap", "effective", "weights")
    why = missing(first, "map_overlap", e.measurements.refusals)
    if first is None or why:
        return cannot_say(KIND, bar, why), frozenset()
    # Blocks with other numbers of heads or tokens cannot repeat one another.
    stages = [m for m in (e.measurements.in_network(first) if first.network else [first]) if len(m.mean) > 1]
    if not stages:
        return cannot_say(KIND, bar, "one block has no other to be compared with"), frozenset()
    uniform: set[int] = set()
    parts, details = [], []
    for m in stages:
        repeated = [replace(r, **_kind_of(e, found, m, r)) for r in _repeated(e, m, bar)]
        uniform |= {m.block_numbers[r.block] for r in repeated if r.kind == UNIFORM}
        parts.append(_levels(e, m, repeated))
        details.append(_detail(e, m, [r for r in repeated if r.kind != UNIFORM], bar))
    result = judged(KIND, bar, Levels.joined(parts), {UNIFORM: frozenset(uniform)})
    return replace(result, detail="; ".join(filter(None, (*details, result.detail)))), frozenset(uniform)


def _repeated(e: Examined, m: Measurement, bar: float) -> list[Repeated]:
    """Blocks that repeat the previous one; or with their heads in another order, or an earlier block, if that removes
    more than half of the distance: of broad maps some other one is always a little nearer."""
    matched = e.measurements.prefer("map_overlap_matched", "weights", "effective", stage=m.stage)
    found = []
    for block in range(1, len(m.mean)):
        before = m.mean[block, :block]
        best = int(block - 1 - np.argmax(np.nan_to_num(before[::-1], nan=-1)))
        least = max(bar, before[-1] + CLOSER * (1 - before[-1]))
        if before[-1] > bar:
            found.append(Repeated(block, block - 1, float(before[-1]), False))
        elif matched is not None and matched.site == m.site and matched.mean[block] > least:
            found.append(Repeated(block, block - 1, float(matched.mean[block]), True))
        elif before[best] > least:
            found.append(Repeated(block, best, float(before[best]), False))
    return found


def _levels(e: Examined, m: Measurement, repeated: list[Repeated]) -> Levels:
    """Overlap of every block but the first: with the previous block, or with the block it repeats."""
    fresh = m.baselines.get("untrained")
    matched = e.measurements.prefer("map_overlap_matched", "weights", "effective", stage=m.stage)
    how = {r.block: r for r in repeated}
    rows = []
    for block in range(1, len(m.mean)):
        r = how.get(block, Repeated(block, block - 1, 0.0, False))
        if r.matched and matched is not None:
            rows.append((matched.mean[block], *matched.ci[:, block], np.nan))
        else:
            known = np.nan if fresh is None else fresh.mean[block, r.other]
            rows.append((m.mean[block, r.other], *m.ci[:, block, r.other], known))
    mean, low, high, untrained = np.array(rows, float).T
    return Levels(mean, low, high, untrained, m.block_numbers[1:], m.n_images)


def _kind_of(e: Examined, found: Mapping[str, Finding], m: Measurement, r: Repeated) -> dict[str, object]:
    """Kind of the repetition, and the overlap with the repeated block in another image."""
    content = e.measurements.prefer("content_overlap", "weights", "effective", stage=m.stage)
    if content is not None and content.site != m.site:  # the softmax says little of maps that are changed after it
        return {}
    if m.block_numbers[r.block] in found["near_uniform"].blocks:
        return {"kind": UNIFORM}
    if content is None:
        return {}
    beyond = content.mean[r.block, r.other]
    if r.matched:  # as far from the matched map as two images' maps are from one another, or nearer?
        beyond = content.mean[r.block, r.block] - (1 - r.overlap)
    elsewhere = float(np.clip(r.overlap - beyond, 0, 1))
    copies = elsewhere <= bar_of(e, KIND) and beyond > CONTENT * (1 - elsewhere)
    return {"kind": COPIES if copies else SAME, "elsewhere": elsewhere}


def _detail(e: Examined, m: Measurement, real: list[Repeated], bar: float) -> str:
    """`blocks 2–5 copy the content of the previous block (in another image 0.21)`, one part per kind."""
    numbers = m.block_numbers
    groups: dict[tuple[str, str], list[Repeated]] = {}
    for r in real:
        words = r.kind if r.kind != SAME else f"{SAME} ({_place(e, m.stage, r.block)})"
        groups.setdefault((words, _of_what(numbers[r.block] - numbers[r.other], r.matched)), []).append(r)
    parts = []
    for (words, what), members in groups.items():
        known = [r.elsewhere for r in members if r.elsewhere is not None]
        elsewhere = f", in another image {number(float(np.mean(known)))}" if known else ""
        parts.append(f"{blocks_text([numbers[r.block] for r in members])} {words}, as {what}{elsewhere}")
    return "; ".join([*parts, *_drift(m, real, bar)])


def _of_what(back: int, matched: bool) -> str:
    if matched:
        return f"the {'previous block' if back == 1 else f'block {back} before'} with its heads in another order"
    if back == 1:
        return "the previous block"
    return "the block two before (A, B, A, B)" if back == 2 else f"the block {back} before"


def _drift(m: Measurement, real: list[Repeated], bar: float) -> list[str]:
    """Sentence on a chain of copies that ends away from its beginning, by the bar of repetition."""
    chain = [r.block for r in real if not r.matched and r.other == r.block - 1]
    if len(chain) < 2 or chain != list(range(chain[0], chain[-1] + 1)):
        return []
    first, last = chain[0] - 1, chain[-1]
    numbers, left = m.block_numbers, float(m.mean[last, first])
    if left > bar:
        return []
    return [f"drifting: block {numbers[last]} overlaps {number(left)} with block {numbers[first]}"]


def _place(e: Examined, stage: str, block: int) -> str:
    """Kind of maps that are the same in all images: a sink, a local window, or positional."""
    sink = e.measurements.prefer("sink_mass", "weights", "effective", stage=stage)
    distance = e.measurements.prefer("attention_distance", "weights", "effective", stage=stage)
    if sink is not None and levels(sink).mean[block] > SINK:
        return "sink"
    if distance is not None and "uniform" in distance.baselines:
        uniform = distance.baselines["uniform"].mean[block].mean()
        if levels(distance).mean[block] < LOCAL * uniform:
            return "positional: local window"
    return "positional" if sink is not None else "positional or sink"
