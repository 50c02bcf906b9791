"""Accuracy of a model without some of its blocks and heads: what ablations cost, and which parts may go."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from attnprobe.core.accuracy import accuracy_difference, accuracy_interval
from attnprobe.core.measurement import Measurement
from attnprobe.core.text import Shown

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["map", "attention", "block", "head", "softmax"]
TOLERANCE = 0.02
"""Accuracy loss tolerated, as a fraction. Smaller losses can rarely be excluded with a few hundred images."""

WORDS: dict[Kind, str] = {
    "map": "block {block} with the previous block's map",
    "attention": "block {block} without attention",
    "block": "without block {block}",
    "head": "block {block} without head {head}",
    "softmax": "block {block} without the softmax map of head {head}",
}


@dataclass(frozen=True, slots=True)
class Change:
    """One ablation, in a block and of a head counted from 1.

    "map": effective attention is that of the previous block; "attention": attention adds nothing to the tokens;
    "block": nor does the MLP; "head": the output of one head is 0; "softmax": its softmax map is 0, where heads are
    mixed after the softmax.
    """

    kind: Kind
    block: int
    head: int = 0

    def __str__(self) -> str:
        return WORDS[self.kind].format(block=self.block, head=self.head)


@dataclass(frozen=True, slots=True, eq=False)
class Tried:
    """Outcomes of the ablated model on all images: those that choose what to remove and those that judge it.

    Attributes:
        changes: ablations, in the order in which they were made; none for the whole model.
        right: [image], bool: classified correctly.
        loss: [image], nats: cross-entropy.
    """

    changes: tuple[Change, ...]
    right: np.ndarray
    loss: np.ndarray

    @property
    def blocks(self) -> list[int]:
        """Blocks dropped, ascending."""
        return sorted(change.block for change in self.changes if change.kind == "block")

    @property
    def attention(self) -> list[int]:
        """Blocks that keep their MLP and lose their attention branch, ascending."""
        return sorted(change.block for change in self.changes if change.kind == "attention")

    @property
    def heads(self) -> list[tuple[int, int]]:
        """Heads silenced, as (block, head), ascending."""
        return sorted((change.block, change.head) for change in self.changes if change.head)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Evidence(Shown):
    """Cost of removing parts: they are chosen on some images, and judged on others, which had no say in the choice.

    A choice looks better on the images it was made on than it is. So their outcomes decide the order of the curves and
    what is harmless, and nothing else; every accuracy, gain and interval reported is of the judging images.

    Attributes:
        ref: the run, checkpoint or model this is about, as it was named.
        candidates: in words, what was removed and where the candidates come from.
        whole: the unablated model.
        single: each candidate alone: a block's map, its attention, the block; a head.
        curves: {"blocks" or "attention", "heads"}: candidates removed cumulatively, the cheapest first.
        chooses: [image], bool: which images choose; the others judge.
        tolerance: accuracy loss tolerated, as a fraction: not more, with 95 % confidence.
        n_classes: 0 where it is not known.
        options: of the command line, that name the images and the model this was measured on.
        advised: what may go by its accuracy and can be removed from the architecture; None for nothing.
        refusal: why something that may go by its accuracy cannot be removed; "" if it can.
        importance: further measures of every head or block, by name.
        measure: what counts as correct: "top-1", or "20-NN" where a model without a head is judged by the neighbours of
            its features.
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
    measure: str = "top-1"

    @property
    def n_choosing(self) -> int:
        """Number of images that choose."""
        return int(self.chooses.sum())

    @property
    def n_judging(self) -> int:
        """Number of images that judge."""
        return int((~self.chooses).sum())

    def gained(self, tried: Tried) -> tuple[float, float, float]:
        """Accuracy of `tried` minus that of the whole model, and its 95 % interval, on the images that judge."""
        return accuracy_difference(self.whole.right[~self.chooses], tried.right[~self.chooses])

    def gained_choosing(self, tried: Tried) -> tuple[float, float, float]:
        """The same on the images that choose, on which the chosen parts look better than they are."""
        return accuracy_difference(self.whole.right[self.chooses], tried.right[self.chooses])

    def cost_choosing(self, tried: Tried) -> tuple[int, float]:
        """Sort key of candidates: correct images among those that choose, negated; among equals, the loss."""
        return -int(tried.right[self.chooses].sum()), float(tried.loss[self.chooses].sum())

    def harmless(self, tried: Tried) -> bool:
        """True if the images that choose exclude a loss of more than the tolerance: the interval's lower end."""
        return self.gained_choosing(tried)[1] >= -self.tolerance and not self.near_chance

    def confirmed(self, tried: Tried) -> bool:
        """True if the images that judge exclude such a loss, too."""
        return self.gained(tried)[1] >= -self.tolerance

    @property
    def near_chance(self) -> bool:
        """True if the unablated model's accuracy is not above chance, so that ablations cannot lower it.

        On the images that choose.
        """
        right = self.whole.right[self.chooses]
        return self.n_classes > 1 and accuracy_interval(int(right.sum()), len(right))[0] <= 1 / self.n_classes

    def free(self, curve: str) -> Tried | None:
        """The last step of a curve that is harmless; None if there is none."""
        return next((tried for tried in reversed(self.curves.get(curve, ())) if self.harmless(tried)), None)

    def rows(self) -> list[dict[str, Any]]:
        """One per ablation: curve ("" for singles), number of parts, accuracy, gain, their intervals, loss.

        All on the images that judge, except `gained_choosing`.
        """
        named = [("", tried) for tried in self.single]
        named += [(name, tried) for name, curve in self.curves.items() for tried in curve]
        return [self.row(tried, name) for name, tried in named]

    def row(self, tried: Tried, curve: str = "") -> dict[str, Any]:
        """Numbers of one ablation; `kind`, `block` and `head` are of the last change, None for the whole model."""
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
        import pandas as pd  # takes half a second, and few ask for the table

        return pd.DataFrame(self.rows())

    def facts(self) -> dict[str, object]:
        """Parts removed, and the accuracy of the whole model, for notebook and terminal."""
        return {
            "candidates": self.candidates,
            "ablations": len(self.rows()),
            "accuracy": f"{self.row(self.whole)['accuracy']:.2%} on {self.n_judging} images",
        }

    @property
    def _title(self) -> str:
        return f"evidence on {self.ref}"
