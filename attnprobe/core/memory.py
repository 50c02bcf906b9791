"""Did the work fail because memory ran out, so that a smaller batch would help?"""

import gc

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """Whether PyTorch could not get memory: on a GPU an error of its own, on a CPU a RuntimeError that says so."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def free_memory() -> None:
    """Give back what nobody holds any more; call it after the `except`, which holds the frames that failed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def available(device: torch.device) -> int | None:
    """Bytes of a GPU's memory that this process may still take, its allocator's own reserve included; None if unknown.

    Unknown for a CPU: what the system calls free is other processes' too, and includes its page cache.
    """
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
