"""What did taking parts of a model away cost, and which of them should go?"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from attnprobe.core.accuracy import accuracy_difference, accuracy_interval
from attnprobe.core.measurement import Measurement
from attnprobe.core.text import blocks_text

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["map", "attention", "block", "head", "softmax"]
TOLERANCE = 0.02
"""Of the accuracy, as a share; with less, a few hundred images can hardly ever exclude a loss."""

WORDS: dict[Kind, str] = {
    "map": "block {block}: map of the block before",
    "attention": "block {block}: attention skipped",
    "block": "block {block}: dropped",
    "head": "block {block}, head {head}: output 0",
    "softmax": "block {block}, head {head}: softmax map 0",
}


@dataclass(frozen=True, slots=True)
class Change:
    """What is taken away, in a block and of a head counted from 1.

    "map": what multiplies V is what the block before used; of "attention" nothing is added to the tokens; "block": nor
    by its MLP; "head": the output of one head is 0; "softmax": its softmax map is, where heads are mixed after it.
    """

    kind: Kind
    block: int
    head: int = 0

    def __str__(self) -> str:
        return WORDS[self.kind].format(block=self.block, head=self.head)


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """The model without these parts, on all images: those that choose what goes and those that judge it.

    Attributes:
        changes: in the order in which they were made; none for the whole model.
        right: [image], bool: which it gets right.
        loss: [image], nats: cross-entropy.
    """

    changes: tuple[Change, ...]
    right: np.ndarray
    loss: np.ndarray

    @property
    def blocks(self) -> list[int]:
        """Those dropped, in order."""
        return sorted(change.block for change in self.changes if change.kind == "block")

    @property
    def heads(self) -> list[tuple[int, int]]:
        """Those silenced, as (block, head), in order."""
        return sorted((change.block, change.head) for change in self.changes if change.head)


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What taking away costs: chosen on some images, and told as it is on others, which had no say.

    A choice looks better on the images it was made on than it is. So their outcomes decide the order of the curves and
    what is harmless, and nothing else; every accuracy, gain and interval that is told is of the judging images.

    Attributes:
        ref: the run, checkpoint or model this is about, as it was asked for.
        candidates: in words, what was tried and who says so.
        whole: the whole model.
        single: each candidate alone: a block's map, its attention, the block; a head.
        curves: {"blocks", "heads"}: candidates taken away one after the other, the cheapest first.
        chooses: [image], bool: which images choose; the others judge.
        tolerance: how much accuracy may be lost, as a share: not more, with 95 % confidence.
        n_classes: 0 where it is not known.
        options: of the command line, that say on which images and as what model this was tried.
        advised: what can go by that and can be taken out of the architecture; None for nothing.
        refusal: why something that could go by its accuracy cannot be taken out; "" if it can.
        importance: further measures of every head, by name.
    """

    ref: str
    candidates: str
    whole: Tried
    single: tuple[Tried, ...]
    curves: Mapping[str, tuple[Tried, ...]]
    chooses: np.ndarray
    tolerance: float = TOLERANCE
    n_classes: int = 0
    options: tuple[str, ...] = ()
    advised: Tried | None = None
    refusal: str = ""
    importance: Mapping[str, Measurement] = field(default_factory=dict)

    @property
    def n_choosing(self) -> int:
        """How many images choose."""
        return int(self.chooses.sum())

    @property
    def n_judging(self) -> int:
        """How many images judge."""
        return int((~self.chooses).sum())

    def gained(self, tried: Tried) -> tuple[float, float, float]:
        """Accuracy of `tried` minus that of the whole model, and its 95 % interval, on the images that judge."""
        return accuracy_difference(self.whole.right[~self.chooses], tried.right[~self.chooses])

    def gained_choosing(self, tried: Tried) -> tuple[float, float, float]:
        """The same on the images that choose, where what was chosen looks too good."""
        return accuracy_difference(self.whole.right[self.chooses], tried.right[self.chooses])

    def cost_choosing(self, tried: Tried) -> tuple[int, float]:
        """What orders candidates: images lost of those that choose; among equals, the loss."""
        return -int(tried.right[self.chooses].sum()), float(tried.loss[self.chooses].sum())

    def harmless(self, tried: Tried) -> bool:
        """Whether the images that choose exclude a loss of more than the tolerance: the interval's lower end."""
        return self.gained_choosing(tried)[1] >= -self.tolerance and not self.near_chance

    def confirmed(self, tried: Tried) -> bool:
        """Whether the images that judge exclude it, too."""
        return self.gained(tried)[1] >= -self.tolerance

    @property
    def near_chance(self) -> bool:
        """Whether the whole model may be guessing on the images that choose, so that nothing it lacks would show."""
        right = self.whole.right[self.chooses]
        return self.n_classes > 1 and accuracy_interval(int(right.sum()), len(right))[0] <= 1 / self.n_classes

    def free(self, curve: str) -> Tried | None:
        """The last step of a curve that is harmless; None if there is none."""
        return next((tried for tried in reversed(self.curves.get(curve, ())) if self.harmless(tried)), None)

    def rows(self) -> list[dict[str, Any]]:
        """One per try: curve ("" for singles), what is away, accuracy, gain over the whole model, intervals, loss.

        All of the images that judge; `gained_choosing` alone is of those that choose.
        """
        tries = [("", tried) for tried in self.single]
        tries += [(name, tried) for name, curve in self.curves.items() for tried in curve]
        return [self.row(tried, name) for name, tried in tries]

    def row(self, tried: Tried, curve: str = "") -> dict[str, Any]:
        """The numbers of one try; `kind`, `block` and `head` are those of what went last, None where nothing did."""
        right, n = int(tried.right[~self.chooses].sum()), self.n_judging
        low, high = accuracy_interval(right, n)
        gained, gained_low, gained_high = self.gained(tried)
        latest = tried.changes[-1] if tried.changes else None
        return {
            "curve": curve,
            "removed": len(tried.changes),
            "kind": latest and latest.kind,
            "block": latest and latest.block,
            "head": (latest and latest.head) or None,
            "accuracy": right / max(n, 1),
            "low": low,
            "high": high,
            "gained": gained,
            "gained_low": gained_low,
            "gained_high": gained_high,
            "loss_gained": float((tried.loss - self.whole.loss)[~self.chooses].mean()),
            "n_images": n,
            "gained_choosing": self.gained_choosing(tried)[0],
            "n_choosing": self.n_choosing,
        }

    def table(self) -> "pd.DataFrame":
        """`rows` as a table."""
        import pandas as pd  # only for those who want one

        return pd.DataFrame(self.rows())

    def accuracy(self) -> str:
        """Of the whole model, in words."""
        right = self.whole.right[~self.chooses]
        low, high = accuracy_interval(int(right.sum()), len(right))
        return (
            f"whole model: top-1 {right.mean():.2%} ({low:.2%}–{high:.2%}, {len(right)} images that judge; "
            f"{self.n_choosing} others chose)"
        )

    def cost(self, tried: Tried) -> str:
        """`-0.28% (-1.50% to +0.95%)`: the accuracy gained, in words."""
        gained, low, high = self.gained(tried)
        return f"{gained:+.2%} ({low:+.2%} to {high:+.2%})"

    def advice(self) -> str:
        """What to do, in a sentence, with the command that does it."""
        if self.advised is None:
            return self._no_advice()
        words = ["attnprobe", "prune", self.ref, *self.options]
        words += ["--blocks", ",".join(map(str, self.advised.blocks))] if self.advised.blocks else []
        pairs = ",".join(f"{block}:{head}" for block, head in self.advised.heads)
        words += ["--heads", pairs] if pairs else []
        command = shlex.join([*words, "-o", f"{_place_of(self.ref)}-smaller"])
        left = f"; {self.refusal}" if self.refusal else ""
        doubt = (
            "" if self.confirmed(self.advised) else f", which do not exclude a loss of more than {self.tolerance:.1%}"
        )
        return (
            f"without {words_of(self.advised)} accuracy {self.cost(self.advised)}: {command}{left}. Chosen on "
            f"{self.n_choosing} images, measured on {self.n_judging} others{doubt}."
        )

    def _no_advice(self) -> str:
        n, right = self.n_choosing, int(self.whole.right[self.chooses].sum())
        if not self.single:
            return "nothing was tried"
        if self.near_chance:
            return f"cannot say: the whole model is right on {right} of {n} images, which may be chance"
        if self.refusal:
            return f"nothing can be taken out: {self.refusal}"
        gone = [tried for tried in self.single if tried.changes[0].kind in ("block", "head", "softmax")]
        if any(self.gained_choosing(tried)[2] >= -self.tolerance for tried in gone):
            return (
                f"cannot say: the {n} images that choose cannot exclude a loss of more than {self.tolerance:.1%} for "
                "any of them; try more images, or allow more with --tolerance"
            )
        return f"nothing can go at a tolerance of {self.tolerance:.1%}: each costs more"

    def __str__(self) -> str:
        lines = [self.candidates, self.accuracy()]
        lines += [self._line(str(tried.changes[0]), tried) for tried in self.single]
        for name, curve in self.curves.items():
            lines.append(f"{name} taken away one after the other, the cheapest first:")
            lines += [self._line(f"  {len(tried.changes)}: {tried.changes[-1]}", tried) for tried in curve]
        return "\n".join([*lines, f"advice: {self.advice()}"])

    def _line(self, words: str, tried: Tried) -> str:
        row = self.row(tried)
        sure = "" if row["gained_low"] <= 0 <= row["gained_high"] else ", not by chance"
        return f"{words}: {row['accuracy']:.2%} ({row['low']:.2%}–{row['high']:.2%}), {self.cost(tried)}{sure}"


def _place_of(ref: str) -> str:
    """Beside what a smaller model goes: the run, also of its checkpoints; of a name such as hf:A/B it is B, here."""
    path = Path(ref)
    path = path.parent.parent if path.parent.name == "checkpoints" else path
    return path.name.rpartition(":")[2] if ":" in ref else str(path)


def words_of(tried: Tried) -> str:
    """`blocks 5–7 and 2 heads`."""
    parts = [blocks_text(tried.blocks)] if tried.blocks else []
    parts += [_heads_text(tried.heads)] if tried.heads else []
    return " and ".join(parts)


def _heads_text(heads: Sequence[tuple[int, int]]) -> str:
    if len(heads) > 3:
        return f"{len(heads)} heads"
    listed = ", ".join(f"{block}:{head}" for block, head in heads)
    return f"head{'s' if len(heads) > 1 else ''} {listed}"
