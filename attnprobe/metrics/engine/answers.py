"""Accuracy of a model on the images whose maps are measured, counted while they pass."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from attnprobe.core.accuracy import no_accuracy_text
from attnprobe.core.maps import AttentionMaps


@dataclass(slots=True)
class Answers:
    """Numbers of images that pass with a label, of those that are given one of its classes, and of the right ones.

    Attributes:
        n_classes: classes that the model tells apart; 0 where it is not known.
        whole: False where some images passed that nobody counted.
    """

    n_labels: int = 0
    n_labelled: int = 0
    n_right: int = 0
    n_classes: int = 0
    whole: bool = True

    def __post_init__(self) -> None:
        if not 0 <= self.n_right <= self.n_labelled <= self.n_labels or self.n_classes < 0:
            raise ValueError(f"{self.n_right} of {self.n_labelled} of {self.n_labels} labelled images are right")

    def counted(self, chunks: Iterable[AttentionMaps]) -> Iterator[AttentionMaps]:
        """The chunks; images count once, in the first stage and site."""
        first = None
        for maps in chunks:
            first, told = first or (maps.stage, maps.site), maps.outcome
            if told is not None and first == (maps.stage, maps.site):
                known = (told.labels >= 0) & (told.prediction >= 0)
                n_right = int((told.labels == told.prediction)[known].sum())
                self.add(Answers(int((told.labels >= 0).sum()), int(known.sum()), n_right, told.n_classes))
            yield maps
            del maps  # its memory is free for the next one

    def add(self, more: "Answers") -> None:
        """Count the images of another part, too."""
        self.n_labels += more.n_labels
        self.n_labelled += more.n_labelled
        self.n_right += more.n_right
        self.n_classes = max(self.n_classes, more.n_classes)
        self.whole = self.whole and more.whole

    def facts(self) -> dict[str, Any]:
        """As in `Examined.info`; empty without images that have a label and are given a class, or if not all count."""
        if not (self.whole and self.n_labelled):
            return {}
        accuracy = self.n_right / self.n_labelled
        return {"accuracy": accuracy, "n_labelled": self.n_labelled, "n_classes": self.n_classes or None}

    def missing(self, n_classes: int) -> tuple[str, ...]:
        """A sentence if images have labels, of so many classes, and the model gives none of them one of these."""
        none_given = n_classes and self.whole and self.n_labels and not self.n_labelled
        return (no_accuracy_text(n_classes),) if none_given else ()
