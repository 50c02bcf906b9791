"""Attention maps of a stage of a model."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from attnprobe.core.errors import ShapeError
from attnprobe.core.grid import TokenGrid
from attnprobe.core.sites import Site
from attnprobe.core.text import Shown


@dataclass(frozen=True, slots=True)
class Outcome:
    """Labels and predictions of the same images; all tensors are [image].

    Attributes:
        labels: the true class, -1 where unknown.
        prediction: the class with the largest logit; -1 where the model has other classes than the data, or none.
        probability: softmax probability of that class; NaN where there is none.
        n_classes: number of classes that the model tells apart; 0 where it is not known.
    """

    labels: Tensor
    prediction: Tensor
    probability: Tensor
    n_classes: int = 0

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Outcome":
        """The same with every tensor changed by a function."""
        return replace(
            self, labels=change(self.labels), prediction=change(self.prediction), probability=change(self.probability)
        )


@dataclass(frozen=True, slots=True)
class Part:
    """A selection of layers, heads and queries of a stage, as positions from 0; None for all of them."""

    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    queries: tuple[int, ...] | None = None

    @property
    def numbers(self) -> dict[str, list[int]]:
        """{axis: numbers from 1, as reports count them} of the axes that are not complete."""
        chosen = {"layer": self.layers, "head": self.heads}
        return {axis: [i + 1 for i in positions] for axis, positions in chosen.items() if positions is not None}

    @property
    def settings(self) -> dict[str, list[int]]:
        """The selection as settings of a measurement; queries count from 0."""
        numbers = {f"{axis}s": chosen for axis, chosen in self.numbers.items()}
        return numbers if self.queries is None else {**numbers, "queries": list(self.queries)}


@dataclass(frozen=True, slots=True, repr=False)
class AttentionMaps(Shown):
    """Attention matrices of a few images, from every layer and head of one stage of a model.

    Attributes:
        values: [image, layer, head, query, key], a float type, no unit. At site "weights" every
            row over `key` sums to 1; at "scores" (before the softmax) and "effective" (after a
            variant mixed its heads) it need not: see `stochastic`. Of maps of windows, W of Q queries
            each, row w * Q + i is query i of window w, and the keys are those of its window.
        image_ids: one stable id per image, in order; joins maps to labels and pixels.
        grid: which tokens are patches, and where they are in the image. It describes the keys where
            queries are other tokens, all windows together, and has no patches where that is not known.
        site: where in the layer the matrix was read.
        is_effective: these maps are the effective attention, the matrix multiplied with V. True at site
            "effective", and at site "weights" of a layer that does not change its map after the softmax.
        stochastic: every row over `key` sums to 1 and no value is negative.
        layers: names of the layers, in order; empty if unknown.
        stage: layers of equal shape and kind; a plain ViT has one, "trunk".
        kind: what a map is: "self"; "window" or "grid" (self-attention inside a part of the image, or inside a
            coarse grid over it); "pyramid" (queries or keys were pooled, Q != K); "class" (one query, the class
            token); "pool" (a pooling head); "cross" (two sets of tokens); "channel" (keys or queries are
            channels, not tokens).
        part: which layers, heads and queries of the stage these are.
        tokens: [image, layer, token, width], the output of each layer's block, if captured.
        value_vectors: [image, layer, head, key, head width], what the effective map multiplies, if captured.
        factors: queries [image, layer, head, query, width] and keys [image, layer, head, key, width], if captured: the
            softmax of their product is the map.
        outcome: labels and predictions of the images, if known.
        pixels: [image], int64, on the CPU: `pixel_hashes` of what the model saw, if known.

    Raises:
        ShapeError: `values` has other axes, or disagrees with `image_ids`, `layers` or `grid`.

    Source: A in Vaswani et al. 2017, arXiv:1706.03762, Eq. (1): A = softmax(Q K^T / sqrt(P)).
    """

    values: Tensor
    image_ids: tuple[str, ...]
    grid: TokenGrid
    site: Site = "weights"
    is_effective: bool = True
    stochastic: bool = True
    layers: tuple[str, ...] = ()
    stage: str = "trunk"
    kind: str = "self"
    part: Part = Part()
    tokens: Tensor | None = None
    value_vectors: Tensor | None = None
    factors: tuple[Tensor, Tensor] | None = None
    outcome: Outcome | None = None
    pixels: Tensor | None = None

    def __post_init__(self) -> None:
        shape = tuple(self.values.shape)
        if len(shape) != 5:
            raise ShapeError(
                f"AttentionMaps.values must be [image, layer, head, query, key], got {len(shape)} axes {shape}. "
                "One layer is [image, head, query, key]: stack layers on axis 1."
            )
        if not self.values.is_floating_point():
            raise ShapeError(f"AttentionMaps.values must be floating point, got {self.values.dtype}.")
        if shape[0] != len(self.image_ids):
            raise ShapeError(f"{shape[0]} images of maps but {len(self.image_ids)} image_ids; give one id per image.")
        if self.layers and shape[1] != len(self.layers):
            raise ShapeError(f"{shape[1]} layers of maps but {len(self.layers)} layer names {self.layers}.")
        n_tokens, part = self.grid.n_tokens, self.part
        for axis, kept in ((1, part.layers), (2, part.heads), (3, part.queries)):
            if kept is not None and shape[axis] != len(kept):
                raise ShapeError(f"axis {axis} of the values has {shape[axis]} entries, and {part} names {len(kept)}.")
        n_queries = n_tokens if part.queries is None else len(part.queries)
        if self.kind == "self" and shape[3:] != (n_queries, n_tokens):
            raise ShapeError(
                f"self-attention over {self.grid} needs {n_queries} queries, {n_tokens} keys, got {shape[3:]}."
            )

    @property
    def n_images(self) -> int:
        return len(self.image_ids)

    def facts(self) -> dict[str, object]:
        """{property: words} for display: site, stage, shape and tokens."""
        axes = ("images", "layers", "heads", "queries", "keys")
        shape = ", ".join(f"{n} {axis}" for n, axis in zip(self.values.shape, axes, strict=True))
        grid = self.grid
        patches = grid.patches_in_words if grid.rows else f"{grid.n_tokens} tokens"
        extras = ("tokens", "value_vectors", "factors", "outcome")
        return {
            "site": self.site + (", effective" if self.is_effective and self.site != "effective" else ""),
            "stage": f"{self.stage}, {self.kind}",
            "shape": shape,
            "tokens of an image": patches + (f" and {', '.join(grid.prefix)}" if grid.prefix and grid.rows else ""),
            "rows sum to 1": "yes" if self.stochastic else "no",
            **{name.replace("_", " "): "yes" for name in extras if getattr(self, name) is not None},
        }

    def images(self, start: int, stop: int) -> "AttentionMaps":
        """The maps of images start..stop-1, as views of the same memory."""

        here, told = slice(start, stop), self.outcome
        outcome = told and told.mapped(lambda tensor: tensor[here])
        pixels = None if self.pixels is None else self.pixels[here]
        ids = self.image_ids[here]
        return self.mapped(lambda tensor: tensor[here], image_ids=ids, outcome=outcome, pixels=pixels)

    def mapped(self, change: Callable[[Tensor], Tensor], **others: Any) -> "AttentionMaps":
        """The maps with values, tokens, value vectors and factors changed by a function; `others` as for `replace`."""
        named = {name: getattr(self, name) for name in ("values", "tokens", "value_vectors")}
        changed = {name: None if tensor is None else change(tensor) for name, tensor in named.items()}
        factors = self.factors and (change(self.factors[0]), change(self.factors[1]))
        return replace(self, **changed, factors=factors, **others)


def uniform_maps(like: AttentionMaps) -> AttentionMaps:
    """One image of maps of the same shape in which every query attends equally to every key; one number in memory."""
    shape = (1, *like.values.shape[1:])
    values = torch.full((1,) * 5, 1.0 / shape[-1], dtype=torch.float32, device=like.values.device).expand(shape)
    about = {"layers": like.layers, "stage": like.stage, "kind": like.kind, "part": like.part}
    return AttentionMaps(values, ("uniform",), like.grid, **about)
