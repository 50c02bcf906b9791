"""The device of training, its precision and its peak memory."""

import sys
from contextlib import suppress

import torch

from attnprobe.core.errors import InputError, option
from attnprobe.training.config import TrainConfig


def pick_device(name: str) -> torch.device:
    """The device called `name`; "auto" takes a GPU if there is one.

    Raises:
        InputError: this machine has no such device.
    """
    if name == "auto":
        accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return accelerator or torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).splitlines()[0]
        of_train = option("set", "device=cpu", python="settings={'device': 'cpu'}")
        other = f"{option('device', 'cpu')}, or {of_train} of train"
        raise InputError(f"no device {name!r} here ({why}); try {other}.") from error
    return device


def amp_dtype(config: TrainConfig, device: torch.device) -> torch.dtype | None:
    """The type of autocast; None for float32, as always on a CPU."""
    if not config.amp or device.type == "cpu":
        return None
    if config.amp_dtype == "bfloat16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return torch.float16
    return getattr(torch, config.amp_dtype)


def peak_memory(device: torch.device) -> float:
    """The peak memory so far, in GiB: PyTorch's on a GPU, this process's on a CPU; NaN if the system cannot say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    with suppress(ImportError):  # Windows has no such module
        import resource

        unit = 1 if sys.platform == "darwin" else 1024  # bytes there, KiB elsewhere
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
    return float("nan")
