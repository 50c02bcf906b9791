"""How do maps leave a GPU while it goes on computing?

By a stream of their own, which begins when the maps are computed and for which no computation waits, into pinned
memory, the only kind that is copied without the processor. PyTorch keeps pinned memory that is let go, so a capture
alternates between that of two batches: one being copied or compressed, one being computed.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from attnprobe.core.maps import AttentionMaps, Outcome


def copies_by_itself(device: torch.device) -> bool:
    """Whether a device has memory of its own, and streams."""
    return device.type != "cpu" and hasattr(torch.get_device_module(device), "Stream")


class Offloaded:
    """Maps of one batch on their way to host memory, in the file's type; from the thread that computes them.

    `arrived` waits, in whatever thread, and gives them. Until then the originals are held: their memory must not be
    used again.
    """

    def __init__(self, maps: Sequence[AttentionMaps], dtype: torch.dtype) -> None:
        device = maps[0].values.device
        self._originals = list(maps)
        self._copies: dict[int, Tensor] = {}  # tokens and outcomes are those of several maps
        streams: Any = torch.get_device_module(device)
        stream = streams.Stream(device)
        stream.wait_stream(streams.current_stream(device))
        with streams.stream(stream):
            self._maps = [self._copied(m, dtype) for m in maps]
            self._done = streams.Event()
            self._done.record(stream)

    def arrived(self) -> list[AttentionMaps]:
        """The maps in host memory."""
        self._done.synchronize()
        self._originals, self._copies = [], {}
        return self._maps

    def _copied(self, maps: AttentionMaps, dtype: torch.dtype) -> AttentionMaps:
        def beside(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else self._copy(tensor, dtype)

        queries, keys = maps.factors or (None, None)
        said = maps.outcome
        return replace(
            maps,
            values=self._copy(maps.values, dtype),
            tokens=beside(maps.tokens),
            value_vectors=beside(maps.value_vectors),
            factors=None if queries is None or keys is None else (self._copy(queries, dtype), self._copy(keys, dtype)),
            outcome=said and Outcome(*(self._copy(x) for x in (said.labels, said.prediction, said.probability))),
        )

    def _copy(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        if id(tensor) not in self._copies:
            copy = torch.empty(tensor.shape, dtype=dtype or tensor.dtype, pin_memory=not tensor.is_cpu)
            for here, there in zip(copy, tensor.detach(), strict=True):  # image by image: a cast needs memory there
                here.copy_(there.to(here.dtype), non_blocking=True)
            self._copies[id(tensor)] = copy
        return self._copies[id(tensor)]
