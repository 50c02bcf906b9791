"""Alarms about attention during training, in words with the numbers.

Two opposite failures: rows that attend to one token (entropy collapse, which goes with unstable training:
arXiv:2303.06296), and rows that attend to all tokens alike, which is where a network starts. And the one that the suite
is about: blocks that repeat the previous block (arXiv:2103.11886). All thresholds are ours.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from attnprobe.core.history import Alarm, History
from attnprobe.core.measurement import Key
from attnprobe.core.text import blocks_text

FEWEST_KEYS = 4
"""Of fewer keys every map is near uniform, on one token or like the others, whatever it attends to."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Thresholds:
    """Rules of alarms. The settings of `similar_blocks` decide whether a block repeats the previous one."""

    fall: float = 0.5
    """Share of its entropy that a block loses within `within` epochs, or since the previous probe if that is longer
    ago. A ViT-16 that learns digits well loses up to 36 % of what it starts with, but over 20 epochs."""

    within: int = 3

    peaked: float = 1.5
    """Entropy collapse: rows attend to fewer tokens than this, exp(entropy)."""

    uniform: float = 0.98
    """Near uniform: rows attend to more than this share of the tokens. Log-normal weights of log-std 0.2 do; their
    cosine with any others is 0.96, so such blocks are similar whatever they attend to."""

    settle: int = 5
    """Epochs in which a network may still be as initialised: near uniform, and therefore every block alike."""

    def __post_init__(self) -> None:
        if not (0 < self.fall < 1 and 0 < self.uniform < 1 and self.peaked > 1 and min(self.within, self.settle) >= 0):
            raise ValueError(f"{self} needs fall and uniform in (0, 1), peaked above 1, within and settle at least 0.")


def alarms(history: History, thresholds: Thresholds = Thresholds()) -> tuple[Alarm, ...]:
    """Alarms in order of epoch; each kind of trouble once per block, when it began."""
    found: list[Alarm] = []
    for name, entropy in history.blocks.items():
        key = Key.parse(name)
        if key.metric == "row_entropy" and name in history.uniform:
            similar = str(Key("similar_blocks", key.stage))
            ratio, rho = history.blocks.get(similar), history.settings.get(similar, {}).get("rho", math.nan)
            here = _Stage(history.epochs, entropy, history.uniform[name], ratio, rho, thresholds)
            where = f" ({key.stage})" if key.stage != "trunk" else ""
            found += [Alarm(alarm.epoch, alarm.text + where) for alarm in here.alarms()]
    return tuple(sorted(found, key=lambda alarm: alarm.epoch))


@dataclass(frozen=True, slots=True)
class _Stage:
    """One stage of a model: epochs [epoch], entropy and ratio [epoch, block], uniform [block]: its entropy."""

    epochs: np.ndarray
    entropy: np.ndarray
    uniform: np.ndarray
    ratio: np.ndarray | None
    rho: float
    thresholds: Thresholds

    def alarms(self) -> Iterator[Alarm]:
        t = self.thresholds
        tokens = np.exp(self.entropy)
        if np.exp(self.uniform).max() < FEWEST_KEYS - 0.5:  # it was measured up to rounding
            yield from self._news(~np.isfinite(self.entropy), self._not_finite)
            return
        peaked = tokens < t.peaked
        recent = [np.fmax.reduce(self.entropy[self._recent(row)]) for row in range(len(self.epochs))]
        fallen = (self.entropy < (1 - t.fall) * np.stack(recent)) & ~_ever(peaked)
        uniform = tokens > t.uniform * np.exp(self.uniform)
        yield from self._news(~np.isfinite(self.entropy), self._not_finite)
        yield from self._news(peaked, self._peaked)
        yield from self._news(fallen, self._fallen)
        yield from self._news(uniform & self._no_start(uniform), self._uniform)
        if self.ratio is not None:
            repeats = self.ratio > self.rho
            yield from self._news(repeats & self._no_start(repeats) & ~uniform, self._repeats)

    def _no_start(self, trouble: np.ndarray) -> np.ndarray:
        """[epoch, block], bool: trouble that is not initial: the block was well earlier, or has had its time."""
        was_well = np.zeros_like(trouble)
        was_well[1:] = _ever(~trouble)[:-1]
        return was_well | (self.epochs >= self.thresholds.settle)[:, None]

    def _news(self, trouble: np.ndarray, say: Callable[[int, Sequence[int]], str]) -> Iterator[Alarm]:
        """An alarm for each row of [epoch, block] in which some block has this trouble for the first time."""
        first = trouble & (trouble.cumsum(0) == 1)
        for row in np.flatnonzero(first.any(1)):
            yield Alarm(int(self.epochs[row]), say(int(row), np.flatnonzero(first[row]).tolist()))

    def _not_finite(self, _row: int, blocks: Sequence[int]) -> str:
        return f"the attention of {_text(blocks)} is not finite"

    def _recent(self, row: int) -> slice:
        """The rows that a fall in this one is measured against: at least the previous one."""
        since = int(np.searchsorted(self.epochs, self.epochs[row] - self.thresholds.within))
        return slice(max(0, min(since, row - 1)), row + 1)

    def _fallen(self, row: int, blocks: Sequence[int]) -> str:
        worst, since = self._worst_fall(row, blocks, self._recent(row))
        now, before = self.entropy[row, worst], self.entropy[since, worst]
        lost = f"{100 * (1 - now / before):.0f} % since epoch {self.epochs[since]} ({before:.2f} -> {now:.2f} nats)"
        up_to = "up to " if len(blocks) > 1 else ""
        return f"row entropy of {_text(blocks)} fell {up_to}{lost}{_most(blocks, worst)}"

    def _peaked(self, row: int, blocks: Sequence[int]) -> str:
        worst, since = self._worst_fall(row, blocks, slice(0, row + 1))
        seen = self._tokens(row, worst, since)
        return f"entropy collapse: rows of {_text(blocks)} attend to {seen}{_most(blocks, worst)}"

    def _uniform(self, row: int, blocks: Sequence[int]) -> str:
        worst = blocks[int(np.argmax(self.entropy[row, blocks]))]
        since = int(np.nanargmin(self.entropy[: row + 1, worst]))
        seen = self._tokens(row, worst, since)
        return f"softmax attention of {_text(blocks)} is near uniform: rows attend to {seen}{_most(blocks, worst)}"

    def _tokens(self, row: int, block: int, since: int) -> str:
        """Number of tokens that a block attends to, and its earlier entropy where it differs."""
        now, before = (f"{self.entropy[when, block]:.2f}" for when in (row, since))
        was = f", {before} at epoch {self.epochs[since]}" if before != now else ""
        tokens, of = math.exp(self.entropy[row, block]), math.exp(self.uniform[block])
        return f"{tokens:.1f} of {of:.0f} tokens (row entropy {now} nats{was})"

    def _repeats(self, row: int, blocks: Sequence[int]) -> str:
        assert self.ratio is not None
        counts = (self.ratio > self.rho).sum(1)
        fewest = int(np.argmin(counts[: row + 1]))
        rose = counts[fewest] < counts[row]
        change = f"{counts[fewest]} -> {counts[row]}" if rose else f"{counts[row]}"
        verb = f"{'now' if rose else 'still'} repeat{'s' if len(blocks) == 1 else ''}"
        since = f"since epoch {self.epochs[fewest]}"
        return f"{_text(blocks)} {verb} the previous block (similar blocks {change} of {self.ratio.shape[1]} {since})"

    def _worst_fall(self, row: int, blocks: Sequence[int], rows: slice) -> tuple[int, int]:
        """The block whose entropy fell by the largest share within these rows, and the row in which it was highest."""
        highest = np.nanmax(self.entropy[rows][:, blocks], axis=0)
        worst = blocks[int(np.nanargmin(self.entropy[row, blocks] / np.maximum(highest, 1e-9)))]
        return worst, rows.start + int(np.nanargmax(self.entropy[rows, worst]))


def _ever(trouble: np.ndarray) -> np.ndarray:
    """[epoch, block], bool: at this epoch or earlier."""
    return np.logical_or.accumulate(trouble)


def _text(blocks: Sequence[int]) -> str:
    return blocks_text([block + 1 for block in blocks])


def _most(blocks: Sequence[int], worst: int) -> str:
    return f", most in block {worst + 1}" if len(blocks) > 1 else ""
