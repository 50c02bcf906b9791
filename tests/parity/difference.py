"""How far is one number of ours from one of theirs, and how far may it be?"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor

FLOAT64_TOLERANCE = 1e-10
"""Agreement asked for in float64, relative to the largest value: only this sees a layer-norm eps of 1e-5."""


@dataclass(frozen=True)
class Difference:
    """One compared quantity: its largest difference, as a multiple of what is allowed."""

    quantity: str
    largest: float
    excess: float


def compare(quantity: str, ours: Tensor, theirs: Tensor, atol: float, rtol: float) -> Difference:
    gap = (ours.detach().double() - theirs.double()).abs()
    allowed = atol + rtol * theirs.double().abs()
    if ours.shape != theirs.shape:
        return Difference(quantity, float("inf"), float("inf"))
    return Difference(quantity, gap.max().item(), (gap / allowed).max().item())


def worst_of_each(differences: Iterable[Difference]) -> list[Difference]:
    """The worst difference of every quantity; a NaN counts as worse than any number."""
    worst: dict[str, Difference] = {}
    for difference in differences:
        known = worst.get(difference.quantity)
        if known is None or not difference.excess <= known.excess:
            worst[difference.quantity] = difference
    return list(worst.values())
