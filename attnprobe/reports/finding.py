"""A finding: whether a kind of collapse is there, from which block on, and by which number."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from attnprobe.core.examined import Examined
from attnprobe.core.measurement import Measurement
from attnprobe.core.text import blocks_text
from attnprobe.reports.kinds import EXTENT, Kind, kind_named
from attnprobe.reports.levels import Levels
from attnprobe.reports.numbers import ci_text, interval, number, with_interval

Found = Literal["yes", "no", "cannot say"]

NOT_MEASURED = "was not measured"
NOT_COUNTED = "not counted"


@dataclass(frozen=True, slots=True)
class Finding:
    """Judgement of one kind of collapse.

    Attributes:
        kind, words, quantity, bar, source: as in `Kind`; `below`: it is found below the bar, not above it.
        found: "cannot say" for missing data alone.
        number: of the block that is furthest beyond the bar, or nearest to it, among those that no other kind explains,
            if there are some; of the last block for a kind that must last to the end and is not found. `low`, `high`:
            its 95 % interval over images; `untrained`: of the same block of the untrained network. None where unknown.
        block: which one that is, from 1.
        blocks: all that are beyond the bar; `of` so many.
        surely, at_most: how many of them are by the bounds of their intervals; all where these are not known.
        first_block: the first of `blocks`; None if there is none.
        detail: which sub-kind, what is not counted and why, what is missing; "" for nothing.
        levels: number of every block, which a figure draws; None where nothing was measured.
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
    levels: Levels | None = field(default=None, compare=False, repr=False)

    @property
    def share(self) -> float:
        """Share of the blocks that are beyond the bar."""
        return len(self.blocks) / self.of if self.of else 0.0

    @property
    def depth(self) -> int:
        """Blocks of the network; one more than can be judged where the first has nothing to repeat."""
        return self.of + (self.kind == "repetition")

    @property
    def among(self) -> str:
        """`block 6 of 6`; of a network of which not all blocks are judged, `block 6, 1 of 3 judged`."""
        numbers = () if self.levels is None else self.levels.numbers
        if numbers and numbers[-1] > self.depth:
            return f"{blocks_text(self.blocks)}, {len(self.blocks)} of {self.of} judged"
        return f"{blocks_text(self.blocks)} of {self.depth}"

    @property
    def single(self) -> bool:
        """True if it is found in single blocks only (`EXTENT`), none of which counts alone."""
        copies = self.kind == "repetition" and self.number is not None and self.number > (1 + self.bar) / 2
        counts = copies or (not kind_named(self.kind).of_maps and self.of in self.blocks)
        return self.found == "yes" and self.share < EXTENT and not counts

    @property
    def is_explained(self) -> bool:
        """True if its number is beyond the bar, but in blocks alone that another kind explains."""
        beyond = self.number is not None and (self.number < self.bar if self.below else self.number > self.bar)
        return self.found == "no" and NOT_COUNTED in self.detail and beyond

    @property
    def from_start(self) -> tuple[int, ...]:
        """Those of `blocks` whose number is beyond the bar in the untrained network, too."""
        if self.levels is None:
            return ()
        beyond = self.levels.untrained < self.bar if self.below else self.levels.untrained > self.bar
        return tuple(n for n, there in zip(self.levels.numbers, beyond, strict=True) if there and n in self.blocks)

    @property
    def not_finite(self) -> tuple[int, ...]:
        """Blocks without a finite value, where others have one; they are not judged."""
        if self.levels is None:
            return ()
        return tuple(n for n, x in zip(self.levels.numbers, self.levels.mean, strict=True) if not np.isfinite(x))

    @property
    def phrase(self) -> str:
        """Words for the headline, where it is found; "from block n" names the first of the blocks, not all after it."""
        bounds = ci_text((self.surely, self.at_most)) if self.surely < self.at_most else ""
        counted = f"{len(self.blocks)} of {self.of} blocks{bounds}"
        where = "from block" if len(self.blocks) > 1 else "in block"
        begin = f"{self.words} {where} {self.first_block}"
        more = [part for part in self.detail.split("; ") if part and NOT_COUNTED not in part]
        if self.kind == "repetition":
            return f"{begin}: {'; '.join(more)} ({counted} after the first, {self.quantity} {number(self.number)})"
        return f"{begin} ({', '.join([counted, f'{self.quantity} {number(self.number)}', *more])})"

    @property
    def answer(self) -> str:
        """The judgement in words: `from block 3, 12 of 24 blocks`; `not found`; `cannot say`."""
        if self.found == "cannot say":
            return "cannot say"
        if self.found == "no":
            return "explained by another kind" if self.is_explained else "not found"
        if self.single:
            return f"in single blocks: {self.among}"
        bounds = "" if self.surely == self.at_most else f" ({self.surely}–{self.at_most})"
        without_gaps = self.blocks[-1] - self.blocks[0] + 1 == len(self.blocks) > 1
        start = f"from block {self.first_block}" if without_gaps else blocks_text(self.blocks)
        return f"{start}, {len(self.blocks)} of {self.of} blocks{bounds}"

    @property
    def brief(self) -> str:
        """The judgement in a word: `12 of 24` blocks; `no`; `explained`; `cannot say`."""
        if self.found == "yes":
            return f"{len(self.blocks)} of {self.of}"
        return "explained" if self.is_explained else self.found

    @property
    def deciding(self) -> str:
        """The number that decides, with its interval, and its block; empty where there is none."""
        if self.number is None:
            return ""
        where = f" in block {self.block}" if self.block else ""
        return f"{with_interval(self.number, self.low, self.high)}{where}"

    @property
    def beyond(self) -> str:
        """The side of the bar on which the kind is found: `above 0.9`."""
        return f"{'below' if self.below else 'above'} {self.bar:.3g}"

    @property
    def row(self) -> tuple[str, ...]:
        """Cells of a table: kind, answer, number, untrained, bar; without a number the answer and its reason."""
        if self.number is None:
            return self.words, f"{self.answer}: {self.detail}"
        return self.words, self.answer, f"{self.quantity} {self.deciding}", number(self.untrained), self.beyond

    @property
    def line(self) -> str:
        """The whole finding in one line."""
        if self.found == "cannot say":
            return f"{self.words}: cannot say, {self.detail}"
        if self.is_explained:
            return f"{self.words}: explained by another kind; {self.detail}"
        counted = with_interval(len(self.blocks), self.surely, self.at_most)
        bounds = interval(self.low, self.high)
        facts = [
            f"{self.quantity} {number(self.number)}" + (f" ({bounds})" if bounds else "")
            + (f" in block {self.block}" if self.block else ""),
            f"untrained {number(self.untrained)}",
            f"bar {'below' if self.below else 'above'} {number(self.bar)}",
            self.source,
        ]  # fmt: skip
        where = f", {blocks_text(self.blocks)}" if self.blocks else ""
        more = f"; {self.detail}" if self.detail else ""
        found = "in single blocks alone" if self.single else self.found
        return f"{self.words}: {found}, {counted} of {self.of} blocks{where}; {', '.join(facts)}{more}"


def bar_of(e: Examined, kind: Kind) -> float:
    return e.bars.get(kind.name, kind.bar)


def cannot_say(kind: Kind, bar: float, why: str) -> Finding:
    return Finding(
        kind.name, kind.words, kind.quantity, "cannot say", bar=bar, below=kind.below, source=kind.source, detail=why
    )


def missing(m: Measurement | None, name: str, refusals: Mapping[str, str]) -> str:
    """Reason why there is nothing to judge by; "" if there is something. `refusals` as in `Measurements`."""
    if m is None:
        return f"{name} {NOT_MEASURED}" + (f": {refusals[name]}" if refusals.get(name) else "")
    if m.n_images == 1:
        return "one image says nothing about others"
    of_two = m.std if m.from_mean is None else m.mean  # NaN in cells with fewer than two finite values
    return "" if np.isfinite(of_two).any() else f"{name} is not finite in any two images"


def judged(kind: Kind, bar: float, found: Levels, excused: Mapping[str, frozenset[int]], detail: str = "") -> Finding:
    """The finding on one kind, from its numbers; blocks that another kind explains do not count.

    Args:
        excused: {words of the other kind: its blocks}.
        detail: what to say first.
    """
    found, finite = found.within(kind.possible), np.isfinite(found.mean)
    if not finite.any():
        return cannot_say(kind, bar, f"{kind.metric} is not finite in any block")
    if kind.to_the_end and not finite[-1]:
        return cannot_say(kind, bar, f"{kind.metric} is not finite in the last block")
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
    details = [detail] if detail else []
    if hidden and not kind.to_the_end:
        words = " and ".join(dict.fromkeys(why[n] for n in hidden))
        details.append(f"{blocks_text(hidden)} {NOT_COUNTED}: {words}")
    if not finite.all():
        details.append(f"{blocks_text(numbers[~finite].tolist())} without a finite value")
    candidates = [mask, free & ~kind.to_the_end, (np.arange(len(mask)) == len(mask) - 1) & kind.to_the_end, finite]
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
        detail="; ".join(details),
        levels=found,
    )


def _known(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None
