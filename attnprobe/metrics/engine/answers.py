"""Accuracy of a model on the images whose maps are measured, counted while they pass."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from attnprobe.core.maps import AttentionMaps


@dataclass(slots=True)
class Answers:
    """Number of labelled images that pass, of those classified correctly, and of classes that occur."""

    n_labelled: int = 0
    n_right: int = 0
    n_classes: int = 0

    def counted(self, chunks: Iterable[AttentionMaps]) -> Iterator[AttentionMaps]:
        """The chunks; images count once, in the first stage and site."""
        first = None
        for maps in chunks:
            first, told = first or (maps.stage, maps.site), maps.outcome
            if told is not None and first == (maps.stage, maps.site):
                known = (told.labels >= 0) & (told.prediction >= 0)
                self.n_labelled += int(known.sum())
                self.n_right += int((told.labels == told.prediction)[known].sum())
                if known.any():
                    both = torch.stack([told.labels[known], told.prediction[known]])
                    self.n_classes = max(self.n_classes, int(both.max()) + 1)
            yield maps
            del maps  # its memory is free for the next one

    def facts(self) -> dict[str, Any]:
        """As in `Examined.info`; empty without labelled images."""
        if not self.n_labelled:
            return {}
        accuracy = self.n_right / self.n_labelled
        return {"accuracy": accuracy, "n_labelled": self.n_labelled, "n_classes": self.n_classes}
