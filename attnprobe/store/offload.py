"""Maps on their way from a GPU to host memory, while it goes on computing.

They are copied on a stream of their own, which begins when the maps are computed and for which no computation waits,
into pinned memory, the only kind that is copied without the processor. PyTorch keeps pinned memory that is let go, so a
capture alternates between that of two batches: one being copied or compressed, one being computed.
"""

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor

from attnprobe.core.maps import AttentionMaps


def copies_by_itself(device: torch.device) -> bool:
    """True if a device has memory of its own, and streams."""
    return device.type != "cpu" and hasattr(torch.get_device_module(device), "Stream")


@cache
def _copying(device: torch.device) -> Any:
    """The stream on which a device's maps are copied. One, since the caching allocator keeps blocks for each stream."""
    return torch.get_device_module(device).Stream(device)


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
        stream = _copying(device)
        stream.wait_stream(streams.current_stream(device))  # or it would copy maps that are still being computed
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
        outcome = maps.outcome and maps.outcome.mapped(self._copy)
        return maps.mapped(lambda tensor: self._copy(tensor, dtype), outcome=outcome)

    def _copy(self, tensor: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        if id(tensor) not in self._copies:
            copy = torch.empty(tensor.shape, dtype=dtype or tensor.dtype, pin_memory=not tensor.is_cpu)
            for here, there in zip(copy, tensor.detach(), strict=True):  # image by image: a cast needs memory there
                here.copy_(there.to(here.dtype), non_blocking=True)
            self._copies[id(tensor)] = copy
        return self._copies[id(tensor)]
