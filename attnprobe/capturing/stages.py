"""The maps of layers of one shape and kind, stacked while the model runs."""

import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from attnprobe.capturing.selection import positions
from attnprobe.capturing.towers import Tower
from attnprobe.core.errors import CaptureError
from attnprobe.core.grid import TokenGrid
from attnprobe.core.maps import AttentionMaps, Outcome, Part
from attnprobe.core.sites import Site


class BufferPool:
    """Hands out CPU memory as tensors and takes it back when nobody holds any view of them.

    Fresh memory costs a page fault per 4 kB on first touch; at 30 MB of maps per image that is a fifth of a
    ViT's forward pass, while a copy into warm memory is about 2 %. On a GPU PyTorch's own allocator does this.
    """

    def __init__(self) -> None:
        self._free: list[np.ndarray] = []

    def empty(self, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """An uninitialised tensor, as `torch.empty`."""
        if device.type != "cpu":
            return torch.empty(shape, dtype=dtype, device=device)
        n_bytes = math.prod(shape) * dtype.itemsize
        fitting = [block for block in self._free if n_bytes <= block.nbytes <= 2 * n_bytes]
        if fitting:
            block = min(fitting, key=lambda block: block.nbytes)
            self._free = [other for other in self._free if other is not block]
        else:
            block = np.empty(n_bytes, dtype=np.uint8)
        lease = block[:n_bytes]  # torch's storage keeps this view alive as long as any tensor shares the memory
        weakref.finalize(lease, self._free_again, block)
        return torch.from_numpy(lease).view(dtype).view(shape)

    def clear(self) -> None:
        """Give back the memory that nobody uses."""
        self._free.clear()

    def _free_again(self, block: np.ndarray) -> None:
        self._free.append(block)


StageKey = tuple[str, int, int, int, int, Tower]
"""Kind, tokens of the image, heads, queries, keys and tower: what layers of a stage have in common."""


@dataclass(slots=True)
class LayerTensors:
    """One tensor of each layer, stacked beside the maps of a stage if all layers have one of the same shape."""

    stack: Tensor | None = None
    n: int = 0


@dataclass(slots=True)
class Stage:
    """Maps of layers of one kind and shape, in the order they fire.

    Attributes:
        kind: as in `AttentionMaps`.
        grid: of its keys.
        n_queries: of a whole map.
        room: layers to have memory for; more is found when needed.
        heads, queries: which are kept; None for all.
        layers, numbers: names of those that came, and their positions among all `n_seen` of this kind and shape.
        differs: some layer changed its map after the softmax.
    """

    kind: str
    sites: tuple[Site, ...]
    pool: BufferPool
    room: int
    grid: TokenGrid
    n_queries: int
    heads: tuple[int, ...] | None = None
    queries: slice | None = None
    layers: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    n_seen: int = 0
    differs: bool = False
    weights: Tensor | None = None
    effective: Tensor | None = None
    scores: Tensor | None = None
    tokens: LayerTensors = field(default_factory=LayerTensors)
    value_vectors: LayerTensors = field(default_factory=LayerTensors)
    q: LayerTensors = field(default_factory=LayerTensors)
    k: LayerTensors = field(default_factory=LayerTensors)
    lacks_weights: bool = False
    lacks_effective: bool = False
    _last: Tensor | None = None

    def add_weights(self, layer: str, matrix: Tensor) -> int:
        """The softmax of the next layer, [image, head, query, key]; its index in the stage."""
        self._begin(layer)
        self._last = matrix
        if "weights" in self.sites or ("effective" in self.sites and not self.differs):
            self.weights = self._stored(self.weights, matrix)
        return len(self.layers) - 1

    def add_effective(self, matrix: Tensor) -> None:
        """The matrix that this layer multiplies with V."""
        weights, self._last = self._last, None
        assert weights is not None, "a layer shows its weights before what it makes of them"
        if not self.differs and not _same_memory(matrix, weights):
            self._now_differs(len(self.layers) - 1)
        if self.differs and "effective" in self.sites:
            self.effective = self._stored(self.effective, matrix)

    def add_scores(self, matrix: Tensor) -> None:
        """The logits of the softmax of this layer."""
        self.scores = self._stored(self.scores, matrix)

    def add_factors(self, index: int, queries: Tensor, keys: Tensor) -> None:
        """Queries and keys of the layer of this index, [image, head, token, width]."""
        queries, keys = (factor if self.heads is None else factor[:, list(self.heads)] for factor in (queries, keys))
        self._add(self.q, index, queries if self.queries is None else queries[:, :, self.queries])
        self._add(self.k, index, keys)

    def add_effective_alone(self, layer: str, matrix: Tensor) -> int:
        """The only map of a layer that makes it of several softmaxes; its index in the stage."""
        self.lacks_weights = True
        if not self.differs:
            self._now_differs(len(self.layers))
        self._begin(layer)
        if "effective" in self.sites:
            self.effective = self._stored(self.effective, matrix)
        return len(self.layers) - 1

    def add_softmax_alone(self, layer: str, matrix: Tensor) -> int:
        """The softmaxes of a layer that adds up what each one reads, so that none is effective; its index."""
        self.lacks_effective = self.differs = True
        return self.add_weights(layer, matrix)

    def skip(self) -> None:
        """A layer that is not kept."""
        self.n_seen += 1

    def add_tokens(self, index: int, tokens: Tensor) -> None:
        """The output of the block of the layer of this index, [image, token, width]."""
        self._add(self.tokens, index, tokens)

    def add_value_vectors(self, index: int, vectors: Tensor) -> None:
        """V of the layer of this index, [image, head, key, head width]."""
        self._add(self.value_vectors, index, vectors if self.heads is None else vectors[:, list(self.heads)])

    def stacks(self) -> list[tuple[Site, Tensor]]:
        """The values of each site: weights, alone where they are effective, too; effective; scores."""
        stacks: list[tuple[Site, Tensor]] = []
        if self.weights is not None and not self.lacks_weights and ("weights" in self.sites or not self.differs):
            stacks.append(("weights", self._cut(self.weights)))
        if self.effective is not None and not self.lacks_effective:
            stacks.append(("effective", self._cut(self.effective)))
        if self.scores is not None:
            stacks.append(("scores", self._cut(self.scores)))
        if not stacks and self.lacks_effective:
            raise CaptureError(
                f"{self.layers[0]} adds up the results of several maps, or reads V with several for each head, so that "
                "none of its maps alone is effective; capture site='weights'."
            )
        if not stacks:
            raise CaptureError(
                f"{self.layers[0]} makes one map of several softmaxes, so it has no weights; capture site='effective'."
            )
        return stacks

    def maps(self, name: str, image_ids: Sequence[str] | None, outcome: Outcome | None) -> list[AttentionMaps]:
        """The maps of each site, in the order of `stacks`; ids are "0", "1" and so on if None."""
        stacks = self.stacks()
        tokens, vectors = self._complete(self.tokens), self._complete(self.value_vectors)
        queries, keys = self._complete(self.q), self._complete(self.k)
        layers = tuple(self.numbers) if len(self.numbers) < self.n_seen else None
        ids = tuple(image_ids) if image_ids is not None else tuple(str(i) for i in range(len(stacks[0][1])))
        return [
            AttentionMaps(
                values=values,
                image_ids=ids,
                grid=self.grid,
                site=site,
                is_effective=site == "effective" or (site == "weights" and not self.differs),
                stochastic=site == "weights",
                layers=tuple(self.layers),
                stage=name,
                kind=self.kind,
                part=Part(layers, self.heads, positions(self.queries, self.n_queries)),
                tokens=tokens,
                value_vectors=vectors,
                factors=None if queries is None or keys is None else (queries, keys),
                outcome=outcome,
            )
            for site, values in stacks
        ]

    def _begin(self, layer: str) -> None:
        self.layers.append(layer)
        self.numbers.append(self.n_seen)
        self.n_seen += 1

    def _now_differs(self, earlier: int) -> None:
        """The layers so far had one matrix for both sites."""
        self.differs = True
        if "effective" in self.sites and self.weights is not None:
            self.effective = torch.empty_like(self.weights)
            self.effective[:, :earlier].copy_(self.weights[:, :earlier])

    def _stored(self, stack: Tensor | None, matrix: Tensor) -> Tensor:
        index = len(self.layers) - 1
        if self.heads is not None:
            matrix = matrix[:, list(self.heads)]
        if self.queries is not None:
            matrix = matrix[:, :, self.queries]
        stack = self._room_for(matrix) if stack is None else self._grown(stack, index)
        stack[:, index].copy_(matrix)
        return stack

    def _add(self, to: LayerTensors, index: int, tensor: Tensor) -> None:
        if to.stack is None and not to.n:
            to.stack = self._room_for(tensor)
        if to.stack is None or to.stack[:, 0].shape != tensor.shape:
            to.stack, to.n = None, -1  # another shape: none for the stage
            return
        to.stack = self._grown(to.stack, index)
        to.stack[:, index].copy_(tensor)
        to.n += 1

    def _complete(self, of: LayerTensors) -> Tensor | None:
        """[image, layer, ...], if every layer gave some."""
        return self._cut(of.stack) if of.stack is not None and of.n == len(self.layers) else None

    def _room_for(self, matrix: Tensor) -> Tensor:
        shape = (matrix.shape[0], self.room, *matrix.shape[1:])
        return self.pool.empty(shape, matrix.dtype, matrix.device)

    def _grown(self, stack: Tensor, index: int) -> Tensor:
        if index < stack.shape[1]:
            return stack
        self.room = max(self.room, 2 * stack.shape[1])
        more = self._room_for(stack[:, 0])
        more[:, : stack.shape[1]].copy_(stack)
        return more

    def _cut(self, stack: Tensor) -> Tensor:
        return stack[:, : len(self.layers)].contiguous()


def _same_memory(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape and a.stride() == b.stride()
