"""Out-of-memory errors: recognising them, and freeing memory afterwards."""

import gc

import torch

from attnprobe.core.errors import AttnprobeError

WORDS = ("out of memory", "can't allocate memory", "not enough memory", "ALLOC_FAILED")
"""Of errors without a type of their own: CUDA's outside the caching allocator and MPS, a CPU, one under Windows, and
cuBLAS, cuDNN and others that want a workspace."""


def is_out_of_memory(error: BaseException) -> bool:
    """True if PyTorch could not get memory: an error type of its own from a GPU's allocator, else by the words."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError)
        and not isinstance(error, AttnprobeError)  # which said what to do
        and any(words in str(error) for words in WORDS)
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
