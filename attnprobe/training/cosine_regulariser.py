"""Cosine regulariser: a loss that pushes neighbouring layers' attention maps apart (recipes of DeepViT and Refiner).

The public code of Zhou et al. 2021 (arXiv:2103.11886) adds to the loss, over the first n + 1 attention layers,

    0.1 * mean over everything of  1/n * sum_{i=0}^{n-1} cos(A_i, A_{i+1})

with A the effective attention. It takes the cosine across heads, one for every query and key (`dim="head"`); the
similarity that the paper measures is that of columns, one for every head and key (`dim="key"`).
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attnprobe.core.errors import InputError

AXES = {"head": 1, "key": 2}
"""The axis of [image, head, query, key] that holds the vectors: a column is one key's weights over all queries."""


def cosine_penalty(maps: Sequence[Tensor], dim: Literal["head", "key"] = "head") -> Tensor:
    """Mean cosine of neighbouring maps, each [image, head, query, key] -> a number in [-1, 1].

    Args:
        maps: maps of n + 1 layers, in order.
        dim: vectors across heads, as in the authors' code; or attention columns, as in the paper's similarity.
    """
    pairs = [F.cosine_similarity(a.float(), b.float(), dim=AXES[dim]) for a, b in pairwise(maps)]
    return torch.stack([cosine.mean() for cosine in pairs]).mean()


class MapListener:
    """Collects the maps of a model's first attention layers in each training forward, attached to the graph."""

    def __init__(self) -> None:
        self._maps: list[Tensor] = []

    def keep(self, module: nn.Module, _args: object, matrix: Tensor) -> None:
        if module.training:  # a validation in between must not add its maps
            self._maps.append(matrix)

    def take(self) -> list[Tensor]:
        """The maps since the last take, each [image, head, query, key]."""
        maps, self._maps = self._maps, []
        return maps


@contextmanager
def listening(model: nn.Module, layers: int) -> Iterator[MapListener]:
    """A listener on the first `layers` attention layers, whose fused kernels are off meanwhile.

    Raises:
        InputError: fewer layers have maps that can be read.
    """
    sites: list[Any] = [m for m in model.modules() if hasattr(m, "fused_attn") and hasattr(m, "attn_drop")]
    if layers > len(sites):
        raise InputError(
            f"cos_reg_component={layers - 1} compares the maps of {layers} layers, but {type(model).__name__} has "
            f"{len(sites)} whose maps can be read; use at most {max(len(sites) - 1, 0)}."
        )
    listener = MapListener()
    with ExitStack() as stack:
        for attention in sites[:layers]:
            tapped = attention.taps["effective"] if hasattr(attention, "taps") else attention.attn_drop
            stack.callback(tapped.register_forward_hook(listener.keep).remove)
            stack.callback(setattr, attention, "fused_attn", attention.fused_attn)
            attention.fused_attn = False
        yield listener
