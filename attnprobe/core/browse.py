"""The protocol of maps that are read one layer at a time. Without torch, so that a viewer starts at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from attnprobe.core.grid import TokenGrid


@dataclass(frozen=True, slots=True)
class StageShape:
    """Shape of the maps of one stage; fields as in `AttentionMaps`.

    Attributes:
        layers, heads: numbers of those present, counted from 1.
        queries: positions of the query tokens, counted from 0; `keys`: the number of key tokens.
        sites: of its maps, weights first, each with whether its rows sum to 1.
    """

    name: str
    kind: str
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    queries: tuple[int, ...]
    keys: int
    grid: TokenGrid
    sites: tuple[tuple[str, bool], ...]


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
