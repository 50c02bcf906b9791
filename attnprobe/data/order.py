"""Subsets of images, and what sources say of theirs."""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field

import numpy as np

from attnprobe.core.images import InputSpec
from attnprobe.core.text import Shown


def balanced_subset(ids: Sequence[str], labels: Sequence[int], size: int | None) -> list[int]:
    """Ascending positions of `size` images, balanced over classes; all if `size` is None.

    Within a class, images are ranked by the SHA-256 of their id, so the choice is the same on every
    machine for ever, hardly moves when images are added, and a smaller subset lies inside a larger one.
    """
    if size is None or size >= len(ids):
        return list(range(len(ids)))
    members = defaultdict(list)
    for position, (name, label) in enumerate(zip(ids, labels, strict=True)):
        members[label].append((hashlib.sha256(name.encode()).digest(), position))
    ranked = sorted((rank, *member) for group in members.values() for rank, member in enumerate(sorted(group)))
    return sorted(position for _rank, _digest, position in ranked[:size])


def one_half(ids: Sequence[str], labels: Sequence[int]) -> np.ndarray:
    """A mask [image] of one half (the larger, if any) of the images; both halves are alike in their classes.

    Within a class, images are ranked by the SHA-256 of their id and dealt out in turn; the next class continues where
    the last one stopped, so that classes of one image do not all fall into the same half.
    """
    ranked = sorted(
        range(len(ids)), key=lambda position: (labels[position], hashlib.sha256(ids[position].encode()).digest())
    )
    chosen = np.zeros(len(ids), bool)
    chosen[ranked[::2]] = True
    return chosen


@dataclass(eq=False, repr=False)
class ListedImages(Shown):
    """An `ImageSource` without its `batches`: what it says of its images.

    Attributes:
        bad: ids of the images that were skipped.
    """

    name: str
    spec: InputSpec
    _: KW_ONLY
    ids: tuple[str, ...]
    class_names: tuple[str, ...]
    fingerprint: str
    bad: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids, self.class_names, self.bad = tuple(self.ids), tuple(self.class_names), list(self.bad)

    def __len__(self) -> int:
        return len(self.ids)

    def facts(self) -> dict[str, object]:
        """Number of images, classes, and how pixels are prepared."""
        names, spec = self.class_names, self.spec
        some = f" ({', '.join(names[:5])}{', ...' if len(names) > 5 else ''})" if names else ""
        return {
            "images": len(self),
            "classes": f"{len(names) or 'none'}{some}",
            "input": f"{spec.size[0]} x {spec.size[1]}, {spec.interpolation}",
            "mean": ", ".join(f"{x:.3g}" for x in spec.mean),
            "std": ", ".join(f"{x:.3g}" for x in spec.std),
            **({"skipped, unreadable": len(self.bad)} if self.bad else {}),
        }

    @property
    def _title(self) -> str:
        return f"images of {self.name}"
