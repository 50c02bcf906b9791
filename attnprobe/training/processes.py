"""How do several processes train one model? Each takes its share of every batch; gradients are averaged.

Started by torchrun, which sets RANK, LOCAL_RANK and WORLD_SIZE; without it there is one process and nothing here does
anything. Process 0 alone writes; all of them read, so several machines need a common file system for the run.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from attnprobe.core.errors import WorkError
from attnprobe.training.sync_bn import share_batch_norm


@dataclass(frozen=True, slots=True)
class Processes:
    """Which of how many processes this one is, and where it computes."""

    device: torch.device
    rank: int = 0
    world: int = 1

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, batch: Sequence[int]) -> Sequence[int]:
        """This process's part of a batch: contiguous, sizes differing by at most one."""
        start, stop = (len(batch) * r // self.world for r in (self.rank, self.rank + 1))
        return batch[start:stop]

    def parallel(self, model: nn.Module, *, sync_bn: bool) -> nn.Module:
        """`model` with its gradients averaged over processes; the same module if there is one process."""
        if self.world == 1:
            return model
        if sync_bn:
            model = share_batch_norm(model, self.device)
        ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def without_averaging(self, model: Any) -> AbstractContextManager:
        """Keep gradients to oneself, while more of them are to be added up."""
        return model.no_sync() if self.world > 1 else nullcontext()

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes."""
        if self.world > 1:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def any(self, flag: bool) -> bool:
        """Whether any process says so."""
        return bool(self.total(torch.tensor(float(flag), device=self.device)).item()) if self.world > 1 else flag

    def same_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's batch-norm statistics."""
        if self.world > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.world > 1:
            dist.barrier()


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join torchrun's processes, if it started this one, and leave them at the end.

    Args:
        device: what this machine computes on; with several GPUs each process takes its own.

    Raises:
        WorkError: the others cannot be reached, or one of them died.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(device)
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda":
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
        yield Processes(device, rank, world)
    except (dist.DistError, RuntimeError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not isinstance(error, dist.DistError) and not any(word in said for word in ("gloo", "NCCL", "onnection")):
            raise
        raise WorkError(f"process {rank} of {world} lost the others ({said}); run the same command again.") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
