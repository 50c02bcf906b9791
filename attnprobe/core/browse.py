"""The protocol of maps that are read one layer at a time. Without torch, so that a viewer starts at once."""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from attnprobe.core.grid import TokenGrid


@dataclass(frozen=True, slots=True)
class StageShape:
    """Shape of the maps of one stage; fields as in `AttentionMaps`.

    Attributes:
        layers, heads: numbers of those present, counted from 1; see `numbered`.
        queries: positions of the query tokens, counted from 0; `keys`: the number of key tokens.
        sites: of its maps, weights first, each with whether its rows sum to 1.
        n_blocks: of all stages that are numbered together; 0 for those of this one.
    """

    name: str
    kind: str
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    queries: tuple[int, ...]
    keys: int
    grid: TokenGrid
    sites: tuple[tuple[str, bool], ...]
    n_blocks: int = 0


@dataclass(frozen=True, slots=True)
class Numbered:
    """Numbers of the blocks of a stage, counted from 1 through several stages, in the order in which they run.

    Attributes:
        together: stages that differ in their number of heads alone, this one included; empty where it is the only one.
        numbers: of its blocks through these.
        network: {stage: numbers} of all stages that images pass one after the other, this one included; empty where
            there is one such stage, or where these are `together`.
    """

    together: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    network: Mapping[str, tuple[int, ...]] = field(default_factory=dict)


TRUNK = re.compile(r"(trunk|stage\d+)(_[a-z]+)?(_\d+)?")
"""Names of stages that images pass one after the other; those of an encoder beside a decoder have more in front."""

OVER_TOKENS = ("self", "window", "grid", "pyramid")
"""Kinds of maps between the tokens of the image."""


def numbered(stages: Mapping[str, tuple[str, Hashable, Sequence[str]]]) -> dict[str, Numbered]:
    """The stages whose blocks are numbered with those of others; the others are left out.

    `capturing.kinds` calls stages that differ in heads alone trunk, trunk_2 ...

    Args:
        stages: {name: (kind, what else stages have in common that differ in heads alone; names of the layers)}, in
            their order, without names for a stage that was kept in part: nobody knows the missing ones.
    """
    alike: dict[Hashable, list[str]] = {}
    for stage, (kind, common, layers) in stages.items():
        base = re.sub(r"_\d+$", "", stage)
        if base in stages and layers:
            alike.setdefault((base, kind, common), []).append(stage)
    trunk = [stage for stage, (kind, *_) in stages.items() if TRUNK.fullmatch(stage) and kind in OVER_TOKENS]
    network = _in_order(trunk, stages) if len(trunk) > 1 and all(stages[stage][2] for stage in trunk) else {}
    found = {stage: Numbered(network=network) for stage in network}
    for together in (tuple(its) for its in alike.values() if len(its) > 1):
        through = network if together[0] in network and set(together) != set(network) else {}
        numbers = _in_order(together, stages)
        found |= {stage: Numbered(together, numbers[stage], through) for stage in together}
    return found


def _in_order(
    chosen: Sequence[str], stages: Mapping[str, tuple[str, Hashable, Sequence[str]]]
) -> dict[str, tuple[int, ...]]:
    """Numbers of the blocks of the chosen stages: in the order of the modules that hold them, as the stages name these,
    then of the numbers in their names, then of the stages."""
    parts = [(re.split(r"(\d+)", layer), stage) for stage in chosen for layer in stages[stage][2]]
    holders = list(dict.fromkeys(words[0] for words, _ in parts))
    places = [(holders.index(words[0]), [int(digits) for digits in words[1::2]], stage) for words, stage in parts]
    order = [stage for *_, stage in sorted(places, key=lambda place: place[:2])]
    return {stage: tuple(i for i, other in enumerate(order, 1) if other == stage) for stage in chosen}


class Browsable(Protocol):
    """Maps that are read when asked for: a maps file, or arrays in a test."""

    @property
    def image_ids(self) -> Sequence[str]:
        """One id per image, in order."""
        ...

    def shapes(self) -> tuple[StageShape, ...]:
        """Every stage."""
        ...

    def layer(self, stage: str, site: str, image: int, layer: int) -> np.ndarray:
        """[head, query, key], float32, of the image and the layer at these positions."""
        ...

    def told(self, image: int) -> tuple[int, int, float]:
        """Label, prediction (-1 where unknown) and probability (NaN where unknown) of the image at a position."""
        ...
