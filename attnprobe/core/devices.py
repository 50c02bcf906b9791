"""GPUs: which one is a process's own, copies to it, and exact arithmetic on it or beside it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from attnprobe.core.errors import InputError, option


def own_gpu(device: torch.device, local_rank: int) -> torch.device:
    """The GPU of one of several processes on this machine; other devices are everyone's.

    Raises:
        InputError: there are more processes than GPUs.
    """
    if device.type != "cuda":
        return device
    if local_rank >= (n := torch.cuda.device_count()):
        raise InputError(
            f"process {local_rank + 1} of this machine needs a GPU of its own, but there are {n}; start "
            f"--nproc-per-node {n}, or run on {option('device', 'cpu')} (train: among the settings)."
        )
    return torch.device("cuda", local_rank)


def on_device(device: torch.device, *drawn: Tensor) -> tuple[Tensor, ...]:
    """Small CPU tensors on `device`, without waiting for work queued on a GPU.

    A copy from pageable memory waits until everything queued on the stream is done; one from pinned memory does not.
    """
    if device.type == "cuda":
        return tuple(tensor.pin_memory().to(device, non_blocking=True) for tensor in drawn)
    return tuple(tensor.to(device) for tensor in drawn)


def numbered(device: torch.device | str) -> torch.device:
    """A device with its number: "cuda" and "cuda:0" are one, where that is the current GPU."""
    return torch.empty(0, device=device).device


def with_float64(device: torch.device) -> torch.device:
    """The device itself; the CPU in place of one without float64, which is Apple's MPS."""
    return torch.device("cpu") if device.type == "mps" else device


def in_float64(tensor: Tensor) -> Tensor:
    """A tensor in float64; on the CPU if its own device has no such type."""
    return tensor.to(with_float64(tensor.device)).double()


FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""Types of numbers that a model may compute in."""


def float_type(model: nn.Module) -> torch.dtype:
    """The type of the pixels that a model takes: that of its first weight, or float32.

    Weights of 8 bits and less, and tables of whole numbers, say nothing of it.
    """
    return next((p.dtype for p in model.parameters() if p.dtype in FLOATS), torch.float32)


@contextmanager
def exact_products() -> Iterator[None]:
    """Matrix products and convolutions in full float32, instead of TensorFloat-32 or bfloat16, for the duration.

    TF32 keeps 10 bits of a factor: an error of 1e-3, ten times what a certificate allows float32.
    """
    precision, convolutions = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(precision)
        torch.backends.cudnn.allow_tf32 = convolutions
