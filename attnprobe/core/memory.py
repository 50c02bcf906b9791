"""Out-of-memory errors: recognising them, and freeing memory afterwards."""

import gc

import torch


def is_out_of_memory(error: BaseException) -> bool:
    """True if PyTorch could not get memory: an error type of its own on a GPU, a RuntimeError's text on a CPU."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def free_memory() -> None:
    """Release unused memory. Call it after the `except` block, which still holds the frames that failed."""
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
