"""Access to the loops that numba compiles, where it is installed."""

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from attnprobe.core.errors import STOPPED, Stopped, stop_asked

MODULE = "attnprobe.metrics.engine.kernels"


def kernels(x: Tensor) -> ModuleType | None:
    """The compiled loops for a float32 tensor on a CPU; None for others, and without numba (`attnprobe[fast]`)."""
    return _module() if x.is_cpu and x.dtype == torch.float32 and not x.requires_grad else None


@cache
def _module() -> ModuleType | None:
    if find_spec("numba") is None:
        return None
    try:
        return import_module(MODULE)
    except Exception as error:
        if stop_asked():  # and numba made it an error of its own; without its loops numbers would differ by rounding
            raise Stopped(STOPPED) from error
        # an installation that does not fit together fails in any way; nothing needs it
        warnings.warn(f"numba is installed but cannot be used, so metrics take longer: {error}.", stacklevel=2)
        return None
