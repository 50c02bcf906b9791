"""Several processes that train one model, and requests to stop them.

Each process takes its share of every batch, and gradients are averaged. torchrun starts them and sets RANK, LOCAL_RANK
and WORLD_SIZE; without it there is one process. Process 0 alone writes; all of them read, so several machines need a
common file system for the run.
"""

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.constants import default_pg_timeout
from torch.nn.parallel import DistributedDataParallel

from attnprobe.core.devices import own_gpu
from attnprobe.core.errors import InputError, Stopped, WorkError

PATIENCE = timedelta(days=1)
"""Longest wait for the first process while it probes or saves; NCCL's own limit, 10 minutes, is for collectives."""

REACHED = timedelta(seconds=30)
"""Longest wait, of two, for torchrun, which listens before it starts a process, unless it was killed since."""


@dataclass(frozen=True, slots=True)
class Processes:
    """This process's number and device, and the number of processes.

    Attributes:
        patient: the group, over gloo, in which `wait` waits; None if torchrun did not start this process.
    """

    device: torch.device
    rank: int = 0
    world: int = 1
    patient: dist.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, batch: Sequence[int]) -> Sequence[int]:
        """This process's part of a batch: contiguous; sizes differ by at most one between processes."""
        start, stop = (len(batch) * r // self.world for r in (self.rank, self.rank + 1))
        return batch[start:stop]

    def parallel(self, model: nn.Module, *, sync_bn: bool) -> nn.Module:
        """`model` with its gradients averaged over processes; the same module without torchrun.

        Raises:
            InputError: `sync_bn` on a CPU, where PyTorch has no batch norm over processes.
        """
        if not self.patient:
            return model
        if sync_bn:
            if self.device.type == "cpu":
                raise InputError("sync_bn=true needs GPUs: PyTorch has no such batch norm for CPUs. Leave it out.")
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        ids = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)

    def without_averaging(self, model: Any) -> AbstractContextManager:
        """A context in which backward leaves gradients unaveraged, while more of them are to be added up."""
        return model.no_sync() if self.patient else nullcontext()

    def total(self, value: Tensor) -> Tensor:
        """The sum of a tensor over all processes."""
        if self.patient:
            value = value.clone()
            dist.all_reduce(value)
        return value

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, in their order; they must pickle."""
        values = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def any(self, flag: bool) -> bool:
        """True if the flag of any process is set."""
        return bool(self.total(torch.tensor(float(flag), device=self.device)).item()) if self.patient else flag

    def same_buffers(self, model: nn.Module) -> None:
        """Give every process the first one's batch-norm statistics."""
        if self.patient:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def wait(self) -> None:
        """Wait until all processes have come here."""
        if self.patient:
            dist.barrier(self.patient)


def _meeting_place() -> dict[str, Any]:
    """Arguments for PyTorch that say where the processes meet; none where one of them opens the place.

    PyTorch itself would try for half an hour to reach a torchrun that is dead.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return {}
    store, rank, world = next(dist.rendezvous("env://", timeout=REACHED))
    store.set_timeout(default_pg_timeout)  # for the other processes, which may be slower to come
    return {"store": dist.PrefixStore("default_pg", store), "rank": rank, "world_size": world}


@contextmanager
def processes(device: torch.device) -> Iterator[Processes]:
    """Join torchrun's processes, be it one, if it started this one, and leave them at the end.

    Args:
        device: the device of this machine; with several GPUs each process takes its own.

    Raises:
        InputError: there are more processes than GPUs.
        WorkError: the others cannot be reached, or one of them died.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 and not dist.is_torchelastic_launched():
        yield Processes(device)
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    device = own_gpu(device, local)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", **_meeting_place())
        patient = dist.new_group(backend="gloo", timeout=PATIENCE)
        assert isinstance(patient, dist.ProcessGroup), "every process is in the group"
        yield Processes(device, rank, world, patient)
    except (dist.DistError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if not isinstance(error, dist.DistError) and not any(word in reason for word in ("gloo", "NCCL", "onnection")):
            raise
        raise WorkError(f"process {rank} of {world} lost the others ({reason}); run the same command again.") from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


class StopRequest:
    """A signal handler that records SIGTERM (a scheduler) or SIGINT (Ctrl-C); the second one acts at once.

    The loop ends at the next update, since stopping inside one would lose the gradients of its parts.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            self.end()
        self.signal = number

    def end(self) -> None:
        """Raise what ends the command with exit code 130 after Ctrl-C, 75 otherwise."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped("stopped on request; run the same command again to continue.")


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Record SIGTERM and SIGINT instead of acting on them; outside the main thread signals are left alone."""
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
