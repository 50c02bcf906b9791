"""The kind of a map, and where its tokens sit in the image.

Read off shapes first, and names only where shapes cannot tell (pool, cross, grid).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from attnprobe.capturing.product import Product
from attnprobe.core.grid import TokenGrid

PREFIX_PARAMETERS = {
    "cls": re.compile(r"(^|\.)(cls_token|class_token|class_embedding|cls_embed)(_\d+)?$"),
    "dist": re.compile(r"(^|\.)(dist_token|distillation_token)$"),
    "reg": re.compile(r"(^|\.)(reg_tokens?|register_tokens?|registers)$"),
}
"""Usual names of the parameters that are tokens before the patches, in the order in which these stand."""


def kind_of(product: Product) -> str:
    """One of the kinds of `AttentionMaps`."""
    layer = product.calls[-1]
    n_windows, n_queries, n_keys = (product.effective.shape[axis] for axis in (1, 3, 4))
    classes = " ".join(type(call.module).__name__ for call in product.calls[-2:]).lower()
    if _over_channels(product):
        return "channel"
    if n_windows > 1:
        own = layer.name.lower().split(".")[-3:]  # not the names of what the layer is part of
        return "grid" if any("grid" in part for part in own) else "window"
    if "cross" in type(layer.module).__name__.lower() or "cross" in layer.name.rpartition(".")[2].lower():
        return "cross"
    if n_queries == 1 < n_keys:
        return "pool" if "pool" in classes or "pool" in layer.name.lower() else "class"
    if "pool" in type(layer.module).__name__.lower() and product.effective.shape[1] == 1:
        return "pool"
    if product.is_cross:
        return "cross"
    return "self" if n_queries == n_keys else "pyramid"


def _over_channels(product: Product) -> bool:
    """True if the map's keys, or its queries alone, are the channels of a head.

    If keys are, V has as many rows as a head has channels, and a column per token.
    """
    given = product.calls[-1].given
    heads, n_keys = product.effective.shape[2], product.effective.shape[4]
    if given is None or given.ndim not in (3, 4):
        return False
    if given.ndim == 3:
        layouts = [(given.shape[1], given.shape[2])]
    else:  # channels last, channels first
        layouts = [
            (given.shape[1] * given.shape[2], given.shape[3]),
            (given.shape[2] * given.shape[3], given.shape[1]),
        ]
    rows, columns = product.value_shape
    if any((rows, columns * heads) == layout for layout in layouts):
        n_queries = product.effective.shape[3]
        return any((n_keys, n_queries * heads) == layout and n_queries != n_keys for layout in layouts)
    return any((columns, n_keys * heads) == layout for layout in layouts)


@dataclass(frozen=True, slots=True)
class TokenPlacement:
    """Facts about a model's tokens, from its modules and the names of its parameters.

    Attributes:
        stems: convolutions that cut pixels into patches.
        prefix: names of the tokens before the patches, in their usual order.
        parameters: the parameter that each kind of prefix token is, "cls", "dist" or "reg", by its name.
    """

    stems: tuple[nn.Conv2d, ...]
    prefix: tuple[str, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module) -> "TokenPlacement":
        """Read off the convolutions over pixels and the names of parameters."""
        convs = (m for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels <= 4)
        named = [*model.named_parameters(), *model.named_buffers()]
        first = {
            kind: next(((name, p) for name, p in named if pattern.search(name)), None)
            for kind, pattern in PREFIX_PARAMETERS.items()
        }
        counts = {kind: 0 if found is None else _count(found[1], kind) for kind, found in first.items()}
        registers = tuple(f"reg{i}" for i in range(counts["reg"]))
        parameters = {kind: found[0] for kind, found in first.items() if found is not None}
        return cls(tuple(convs), ("cls",) * counts["cls"] + ("dist",) * counts["dist"] + registers, parameters)

    @property
    def overlapping(self) -> bool:
        """True if a convolution over pixels sees more of them than it moves by."""
        return any(
            kernel > step for stem in self.stems for kernel, step in zip(stem.kernel_size, stem.stride, strict=True)
        )

    def grid(self, n_tokens: int, size: tuple[int, int] | None) -> TokenGrid | None:
        """The grid of `n_tokens` tokens of an image of `size` pixels; None if there is none that fits.

        Patches are those of a convolution over pixels, merged in twos with depth, or powers of two; and not all prefix
        tokens need to be there.
        """
        if size is None:
            return None
        starts = [start for stem in self.stems for start in _patches(stem, size)]
        for rows, cols, patch in [*starts, (*size, (1, 1))]:
            while True:
                n_prefix = n_tokens - rows * cols
                if 0 <= n_prefix <= len(self.prefix):
                    return TokenGrid(rows, cols, self.prefix[:n_prefix], patch)
                if n_prefix > 0 or rows * cols == 1:
                    break
                rows, cols, patch = -(-rows // 2), -(-cols // 2), (2 * patch[0], 2 * patch[1])
        return None


def _patches(stem: nn.Conv2d, size: tuple[int, int]) -> list[tuple[int, int, tuple[int, int]]]:
    """Rows, columns and size of the patches of a convolution; first as it is, then as if the image were padded."""
    stride = (int(stem.stride[0]), int(stem.stride[1]))
    padding = stem.padding if isinstance(stem.padding, tuple) else (0, 0)
    kept = [
        max(1, (side + 2 * pad - dilation * (kernel - 1) - 1) // step + 1)
        for side, pad, dilation, kernel, step in zip(
            size, padding, stem.dilation, stem.kernel_size, stride, strict=True
        )
    ]
    padded = [-(-side // step) for side, step in zip(size, stride, strict=True)]
    return [(kept[0], kept[1], stride), (padded[0], padded[1], stride)]


def _count(parameter: Tensor, kind: str) -> int:
    return 1 if kind != "reg" or parameter.ndim < 2 else int(parameter.shape[-2])


def unplaced(n_tokens: int, kind: str) -> TokenGrid:
    """The grid of tokens that could not be placed: no patches; self-attention still needs a name for each token."""
    return TokenGrid(0, 0, tuple(f"token{i}" for i in range(n_tokens)) if kind == "self" else (), (1, 1))


def stage_names(stages: Sequence[tuple[str, int]], towers: Sequence[str] = ()) -> list[str]:
    """Names of stages of the given (kind, tokens of the image), in order of appearance.

    Class and pooling stages are called after their kind. Of the others those with equally many tokens share a
    name, "trunk" if all have, else "stage1", "stage2" ..., with the kind behind it where several kinds share one.

    Args:
        towers: name of the tower of each stage, before its own name, or in place of "trunk"; "" for none.
    """
    towers = towers or [""] * len(stages)
    trunk = [(tower, kind, n) for tower, (kind, n) in zip(towers, stages, strict=True) if kind not in ("class", "pool")]
    names: list[str] = []
    for tower, (kind, n) in zip(towers, stages, strict=True):
        name = kind
        if kind not in ("class", "pool"):
            sizes = list(dict.fromkeys(m for its, _, m in trunk if its == tower))
            name = "trunk" if len(sizes) == 1 else f"stage{sizes.index(n) + 1}"
            if len({other for its, other, m in trunk if (its, m) == (tower, n)}) > 1:
                name += f"_{kind}"
        if tower:
            name = tower + name.removeprefix("trunk") if name.startswith("trunk") else f"{tower}_{name}"
        names.append(name)
    earlier = [names[:i].count(name) for i, name in enumerate(names)]
    return [f"{name}_{count + 1}" if count else name for name, count in zip(names, earlier, strict=True)]
