"""Is there a collapse of this kind, from which block on, and by which number?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Measurement
from attnprobe.core.wording import blocks_text
from attnprobe.reports.kinds import EXTENT, KINDS, Kind, kind_named
from attnprobe.reports.levels import Levels, block_numbers, diagonal, levels
from attnprobe.reports.numbers import ci_text, interval, number, with_interval
from attnprobe.reports.sites import at_effective, at_softmax

Found = Literal["yes", "no", "cannot say"]

NOT_MEASURED = "was not measured"
NOT_COUNTED = "not counted"


@dataclass(frozen=True, slots=True)
class Finding:
    """What is said of one kind.

    Attributes:
        kind, words, quantity, bar, source: as in `Kind`; `below`: it is found below the bar, not above it.
        found: "cannot say" for missing data alone.
        number: of the block that is furthest beyond the bar, or nearest to it; `low`, `high`: its 95 % interval over
            images; `untrained`: of the same block of the untrained network. None where unknown.
        block: which one that is, from 1.
        blocks: all that are beyond the bar; `of` so many.
        surely, at_most: how many of them are by the bounds of their intervals; all where these are not known.
        first_block: the first of `blocks`; None if there is none.
        detail: which sub-kind, what is not counted and why, what is missing; "" for nothing.
    """

    kind: str
    words: str
    quantity: str
    found: Found
    number: float | None = None
    low: float | None = None
    high: float | None = None
    untrained: float | None = None
    bar: float = 0.0
    below: bool = False
    source: str = ""
    block: int | None = None
    blocks: tuple[int, ...] = ()
    of: int = 0
    surely: int = 0
    at_most: int = 0
    first_block: int | None = None
    detail: str = ""

    @property
    def share(self) -> float:
        """Of the blocks."""
        return len(self.blocks) / self.of if self.of else 0.0

    @property
    def single(self) -> bool:
        """Whether it is found in single blocks only (`EXTENT`), none of which counts alone."""
        counts = self.kind == "repetition" or (not kind_named(self.kind).of_maps and self.of in self.blocks)
        return self.found == "yes" and self.share < EXTENT and not counts

    @property
    def phrase(self) -> str:
        """For the headline, where it is found; "from block n" is the first of the blocks, not all after it."""
        counted = f"{len(self.blocks)} of {self.of} blocks{ci_text((self.surely, self.at_most))}"
        where = "from block" if len(self.blocks) > 1 else "in block"
        told = f"{self.words} {where} {self.first_block}"
        more = [part for part in self.detail.split("; ") if part and NOT_COUNTED not in part]
        if self.kind == "repetition":
            return f"{told}: {'; '.join(more)} ({counted} after the first, {self.quantity} {number(self.number)})"
        return f"{told} ({', '.join([counted, f'{self.quantity} {number(self.number)}', *more])})"

    @property
    def _beyond(self) -> bool:
        """Whether the number is beyond the bar, as where every block is explained by another kind."""
        return self.number is not None and (self.number < self.bar if self.below else self.number > self.bar)

    @property
    def line(self) -> str:
        """Everything in one line."""
        if self.found == "cannot say":
            return f"{self.words}: cannot say, {self.detail}"
        if self.found == "no" and not self.blocks and NOT_COUNTED in self.detail and self._beyond:
            return f"{self.words}: no other than is explained; {self.detail}"
        counted = with_interval(len(self.blocks), self.surely, self.at_most)
        bounds = interval(self.low, self.high)
        told = [
            f"{self.quantity} {number(self.number)}" + (f" ({bounds})" if bounds else "")
            + (f" in block {self.block}" if self.block else ""),
            f"untrained {number(self.untrained)}",
            f"bar {'below' if self.below else 'above'} {number(self.bar)}",
            self.source,
        ]  # fmt: skip
        where = f", {blocks_text(self.blocks)}" if self.blocks else ""
        more = f"; {self.detail}" if self.detail else ""
        return f"{self.words}: {self.found}, {counted} of {self.of} blocks{where}; {', '.join(told)}{more}"


def softmax_of(e: Examined, metric: str) -> Measurement | None:
    """The metric on the softmax; on what multiplies V where only that was captured, or on tokens."""
    return at_softmax(e, metric) or at_effective(e, metric)


def bar_of(e: Examined, kind: Kind) -> float:
    return e.bars.get(kind.name, kind.bar)


def cannot_say(kind: Kind, bar: float, why: str) -> Finding:
    return Finding(
        kind.name, kind.words, kind.quantity, "cannot say", bar=bar, below=kind.below, source=kind.source, detail=why
    )


def missing(m: Measurement | None, name: str) -> str:
    """Why there is nothing to judge by; "" if there is something."""
    if m is None:
        return f"{name} {NOT_MEASURED}"
    if m.n_images - m.n_excluded < 2:
        return "one image says nothing about others" if m.n_images == 1 else f"{name} is not finite in any two images"
    return ""


def judged(kind: Kind, bar: float, found: Levels, excused: Mapping[str, frozenset[int]], detail: str = "") -> Finding:
    """One kind by its numbers; blocks that another kind explains, by the words for it, do not count."""
    finite = np.isfinite(found.mean)
    if not finite.any():
        return cannot_say(kind, bar, f"{kind.metric} is not finite in any block")
    numbers, sign = np.asarray(found.numbers), -1 if kind.below else 1
    why = {n: word for word, blocks in excused.items() for n in blocks}
    free = np.array([n not in why for n in found.numbers])

    def beyond(x: np.ndarray) -> np.ndarray:
        return np.where(np.isfinite(x), sign * (x - bar), -np.inf) > 0

    def counted(x: np.ndarray) -> np.ndarray:
        return np.logical_and.accumulate(beyond(x)[::-1])[::-1] if kind.to_the_end else beyond(x) & free

    outer, inner = (found.low, found.high) if kind.below else (found.high, found.low)
    mask = counted(found.mean)
    hidden = numbers[beyond(found.mean) & ~free].tolist()
    told = [detail] if detail else []
    if hidden and not kind.to_the_end:
        words = " and ".join(dict.fromkeys(why[n] for n in hidden))
        told.append(f"{blocks_text(hidden)} {NOT_COUNTED}: {words}")
    if not finite.all():
        told.append(f"{blocks_text(numbers[~finite].tolist())} without a finite value")
    candidates = [mask, free & ~kind.to_the_end, np.arange(len(mask)) == len(mask) - 1, finite]
    pick = next(c & finite for c in candidates if (c & finite).any())
    at = int(np.argmax(np.where(pick, sign * found.mean, -np.inf)))
    blocks = tuple(numbers[mask].tolist())
    return Finding(
        kind=kind.name,
        words=kind.words,
        quantity=kind.quantity,
        found="yes" if blocks else "no",
        number=_known(found.mean[at]),
        low=_known(found.low[at]),
        high=_known(found.high[at]),
        untrained=_known(found.untrained[at]),
        bar=bar,
        below=kind.below,
        source=kind.source,
        block=int(numbers[at]),
        blocks=blocks,
        of=len(mask),
        surely=int((mask & (counted(inner) | ~np.isfinite(inner))).sum()),
        at_most=int((counted(outer) | mask).sum()),
        first_block=blocks[0] if blocks else None,
        detail="; ".join(told),
    )


def _known(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


# --- the number of each kind ---------------------------------------------------------------------------------------


def _share_of_tokens(m: Measurement) -> Levels:
    return levels(m).then(lambda x: np.exp(x - m.baselines["uniform"].mean.mean()))


def _tokens_attended(m: Measurement) -> Levels:
    return levels(m).then(np.exp)


def _same_in_other_images(m: Measurement) -> Levels:
    return diagonal(m).then(lambda x: 1 - x)


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
    return Levels(mean, low, high, share(fresh.get("effective_heads")), block_numbers(m), m.n_images)


NUMBERS: dict[str, Callable[[Measurement], Levels]] = {
    "representation_collapse": levels,
    "oversmoothing": levels,
    "dimensional_collapse": levels,
    "near_uniform": _share_of_tokens,
    "entropy_collapse": _tokens_attended,
    "sink_collapse": levels,
    "rank_collapse": levels,
    "image_independent": _same_in_other_images,
    "head_redundancy": _needless_heads,
    "massive_activations": levels,
}
"""By the name of the kind; repetition needs several measurements."""

EXCUSED = {
    "near_uniform": (),
    "sink_collapse": (),
    "entropy_collapse": ("sink_collapse",),
    "rank_collapse": ("near_uniform", "sink_collapse"),
    "image_independent": ("near_uniform", "sink_collapse"),
    "head_redundancy": ("near_uniform", "sink_collapse"),
}
"""Kinds that are judged in this order, and those that explain them: near-uniform maps have equal rows in every image,
and queries that all look at one token have no entropy. Named once."""


def findings(e: Examined) -> tuple[Finding, ...]:
    """What is said of each kind, in the order of `KINDS`."""
    from attnprobe.reports.repetition import repetition  # it is judged by what is said of the others

    found: dict[str, Finding] = {}
    for kind in sorted(KINDS, key=lambda kind: [*EXCUSED, kind.name].index(kind.name)):
        if kind.name != "repetition":
            found[kind.name] = _finding(e, kind, found)
    found["repetition"], repeating = repetition(e, found)
    if repeating:  # told where it is explained, and not counted as repetition
        near = found["near_uniform"]
        words = f"so {len(repeating)} of them overlap{'s' if len(repeating) == 1 else ''} with the block before"
        found["near_uniform"] = replace(near, detail="; ".join(filter(None, (near.detail, words))))
    return tuple(found[kind.name] for kind in KINDS)


def _finding(e: Examined, kind: Kind, found: Mapping[str, Finding]) -> Finding:
    m = softmax_of(e, kind.metric)
    why = missing(m, kind.metric)
    if m is None or why:
        return cannot_say(kind, bar_of(e, kind), why)
    if kind.name == "near_uniform" and "uniform" not in m.baselines:
        return cannot_say(kind, bar_of(e, kind), "uniform attention was not measured beside it")
    numbers = NUMBERS[kind.name](m)
    prefix = softmax_of(e, "prefix_mass")
    if kind.name == "sink_collapse" and prefix is not None:
        numbers = numbers.or_larger(_prefix(prefix))
    changed = kind.of_maps and m.site == "weights" and not m.is_effective
    detail = "of the softmax, which this variant changes before V" if changed else ""
    excused = {found[name].words: frozenset(found[name].blocks) for name in EXCUSED.get(kind.name, ())}
    return judged(kind, bar_of(e, kind), numbers, excused, detail)


def _prefix(m: Measurement) -> Levels:
    """Attention on all prefix tokens together, mean over heads."""
    n = m.mean.shape[-1]
    fresh = m.baselines.get("untrained")
    known = np.full(len(m.mean), np.nan) if fresh is None else n * fresh.mean.mean((1, 2))
    found = levels(m)
    return Levels(n * found.mean, n * found.low, n * found.high, known, found.numbers, m.n_images)
