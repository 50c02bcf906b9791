"""The protocol of maps that are read one layer at a time. Without torch, so that a viewer starts at once."""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from attnprobe.core.grid import TokenGrid


@dataclass(frozen=True, slots=True)
class StageShape:
    """Shape of the maps of one stage; fields as in `AttentionMaps`.

    Attributes:
        layers, heads: numbers of those present, counted from 1; see `numbered_together`.
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
    """Numbers of the blocks of a stage, through the network: from 1, in the order in which they run.

    Attributes:
        together: stages that were numbered together, this one included.
        numbers: of its blocks.
    """

    together: tuple[str, ...]
    numbers: tuple[int, ...]


def numbered_together(stages: Mapping[str, tuple[Hashable, Sequence[str]]]) -> dict[str, Numbered]:
    """Stages that differ in their number of heads alone, with the numbers of their blocks; others are left out.

    `capturing.kinds` calls such stages trunk, trunk_2 ...; the order of blocks is that of the numbers in their names.

    Args:
        stages: {name: (what stages must have in common, as tokens and kind; names of the layers)}, without names for a
            stage that was kept in part: nobody knows the missing ones.
    """
    alike: dict[Hashable, list[str]] = {}
    for stage, (common, layers) in stages.items():
        base = re.sub(r"_\d+$", "", stage)
        if base in stages and layers:
            alike.setdefault((base, common), []).append(stage)
    numbered = {}
    for together in (tuple(its) for its in alike.values() if len(its) > 1):
        order = sorted((name for stage in together for name in stages[stage][1]), key=_natural)
        number_of = {name: number for number, name in enumerate(order, 1)}
        for stage in together:
            numbered[stage] = Numbered(together, tuple(number_of[name] for name in stages[stage][1]))
    return numbered


TRUNK = re.compile(r"(trunk|stage\d+)(_[a-z]+)?(_\d+)?")
"""Names of stages that images pass one after the other; those of an encoder beside a decoder have more in front."""

OVER_TOKENS = ("self", "window", "grid", "pyramid")
"""Kinds of maps between the tokens of the image."""


def numbered_through(stages: Mapping[str, tuple[str, Sequence[str]]]) -> dict[str, tuple[int, ...]]:
    """Numbers of the blocks of every stage through a network of several, from 1, in the order in which they run.

    That order is that of the modules that hold them, as the stages name these, then of the numbers in their names, then
    of the stages. Empty where there is one stage, or one was kept in part.

    Args:
        stages: {name: (kind, names of the layers)}, in their order, without names for a stage that was kept in part.
    """
    trunk = {name: layers for name, (kind, layers) in stages.items() if TRUNK.fullmatch(name) and kind in OVER_TOKENS}
    if len(trunk) < 2 or not all(trunk.values()):
        return {}
    named = [(layer, stage) for stage, layers in trunk.items() for layer in layers]
    holders = list(dict.fromkeys(_holder(layer) for layer, _ in named))
    keys = {layer: (holders.index(_holder(layer)), *map(int, re.findall(r"\d+", layer))) for layer, _ in named}
    order = [stage for _, stage in sorted(named, key=lambda pair: keys[pair[0]])]
    return {stage: tuple(i for i, other in enumerate(order, 1) if other == stage) for stage in trunk}


def _holder(layer: str) -> str:
    """The name of a layer up to its first number."""
    return re.split(r"\d", layer, maxsplit=1)[0]


def _natural(name: str) -> list[int | str]:
    """Sorting key by which blocks.2 is before blocks.10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


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
