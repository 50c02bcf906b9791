"""Processes that hold one model together, each a share of its weights: they run the same images in lock-step.

A model that does not fit on one card is sharded by FSDP2: before a block runs, its weights are gathered from all
processes of the replica, so all must run it, on the same images and as often. The first of them leads: it alone claims
parts of the work, writes and decides, and tells the others every answer of its sink; so they go the same way through
the same code. Replicas share the work as single processes do. Tensor parallelism splits heads over processes, and no
process then has the maps of all: it is not done here.
"""

import atexit
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from attnprobe.core.errors import InputError
from attnprobe.core.maps import AttentionMaps
from attnprobe.io.ranks import Rank


@dataclass(frozen=True, slots=True)
class Replica:
    """The processes that hold the model which this process runs.

    Attributes:
        rank: of the replica among the replicas, and of this process on its machine.
        place: number of this process in its replica; 0 leads.
        size: number of processes in a replica.
        group: their process group on the CPU; None where the process is one by itself.
    """

    rank: Rank
    place: int = 0
    size: int = 1
    group: Any = None

    @classmethod
    def of_this_process(cls, size: int = 1) -> "Replica":
        """The replica of `size` successive ranks of torchrun that this process is in.

        Raises:
            InputError: the job has no such number of processes.
        """
        rank = Rank.of_this_process()
        if size == 1:
            return cls(rank)
        if size < 1 or rank.world % size or "MASTER_ADDR" not in os.environ:
            raise InputError(
                f"--shard {size} needs {size} processes for each copy of the model, and there are {rank.world}: start "
                f"a multiple of {size} with torchrun --nproc-per-node."
            )
        if not dist.is_initialized():
            dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
            atexit.register(dist.destroy_process_group)
        group, _ = dist.new_subgroups(size, backend="gloo")
        copies = rank.world // size
        job, local = rank.job if copies > 1 else "", max(1, rank.local_world // size)
        own = replace(rank, rank=rank.rank // size, world=copies, local_world=local, job=job)
        return cls(own, rank.rank % size, size, group)

    @property
    def leads(self) -> bool:
        """True for the process that writes."""
        return self.place == 0

    def told(self, answer: Any) -> Any:
        """The answer of the leader, on every process of the replica; the argument counts on the leader alone."""
        if self.group is None:
            return answer
        box = [answer]
        dist.broadcast_object_list(box, group=self.group, group_src=0)
        return box[0]

    def placed(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model on the device; of several processes block by block, each with its share of the weights."""
        if self.group is None:
            return model.to(device)
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        if device.type == "cuda":
            torch.cuda.set_device(device)
        shape = (dist.get_world_size() // self.size, self.size)
        mesh = init_device_mesh(device.type, shape, mesh_dim_names=("replica", "shard"))["shard"]
        for module in list(model.modules()):
            for block in module if isinstance(module, nn.ModuleList) else ():
                fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        return model

    @contextmanager
    def sink(self, make: Callable[[], Any]) -> Iterator[Any]:
        """A sink from `make` on the leader; on the others one that gives its answers and writes nothing."""
        if self.group is None:
            with make() as sink:
                yield sink
        elif self.leads:
            with make() as sink:
                yield _Leading(sink, self)
        else:
            yield _Following(self)


class _Leading:
    """A sink whose every answer is told to the other processes of the replica."""

    def __init__(self, sink: Any, replica: Replica) -> None:
        self._sink, self._told = sink, replica.told
        self.folder = sink.folder

    @property
    def begun(self) -> bool:
        return self._told(self._sink.begun)

    @property
    def batch_images(self) -> int | None:
        return self._told(self._sink.batch_images)

    @property
    def may_skip(self) -> bool:
        return self._told(self._sink.may_skip)

    @property
    def skipped(self) -> Any:
        return self._told(self._sink.skipped)

    def begin(self, maps: Sequence[AttentionMaps], batch_images: int) -> None:
        self._sink.begin(maps, batch_images)

    def pending(self) -> list[range]:
        return self._told(self._sink.pending())

    def parts(self) -> Iterator[range]:
        for part in self._sink.parts():
            yield self._told(part)
        self._told(None)

    def write(self, *args: Any) -> None:
        self._sink.write(*args)

    def close(self, *args: Any) -> Any:
        return self._told(self._sink.close(*args))


class _Following:
    """A sink that gives the leader's answers, and drops what it is given."""

    def __init__(self, replica: Replica) -> None:
        self._heard = lambda: replica.told(None)
        self.folder = Path()

    @property
    def begun(self) -> bool:
        return self._heard()

    @property
    def batch_images(self) -> int | None:
        return self._heard()

    @property
    def may_skip(self) -> bool:
        return self._heard()

    @property
    def skipped(self) -> Any:
        return self._heard()

    def begin(self, maps: Sequence[AttentionMaps], batch_images: int) -> None:
        """Nothing: the leader pins what a part is."""

    def pending(self) -> list[range]:
        return self._heard()

    def parts(self) -> Iterator[range]:
        while (part := self._heard()) is not None:
            yield part

    def write(self, part: range, batches: Iterator[list[AttentionMaps]], *_: Any) -> None:
        for _batch in batches:
            pass

    def close(self, certificate: Mapping[str, Any] | None = None) -> Any:
        return self._heard()
