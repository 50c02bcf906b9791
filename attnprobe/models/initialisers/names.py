"""Initialisations by the authors' `weight_init` strings."""

import math
import re
from dataclasses import dataclass

from attnprobe.core.errors import InputError, did_you_mean

TIMM = ("", "reset", "jax", "jax_nlhb", "moco")
"""Strings timm's `VisionTransformer` understands itself; "" is its truncated normal."""

SKIP = "skip"
"""Every module as PyTorch makes it."""


@dataclass(frozen=True, slots=True)
class Mimetic:
    """`mimetic<alpha>_<beta>`: per head, Wq^T Wk is the nearest product of its rank to alpha Z + beta I."""

    alpha: float
    beta: float


@dataclass(frozen=True, slots=True)
class Impulse:
    """`impulse<kernel>`: every head attends to the patch at one offset within a kernel x kernel window."""

    kernel: int


def parse(weight_init: str) -> Mimetic | Impulse | str:
    """The initialisation of a `weight_init` string; timm's own strings and "skip" are returned unchanged.

    Raises:
        InputError: no such initialisation, or its numbers are missing, infinite or (for a window) even.
    """
    if weight_init in (*TIMM, SKIP):
        return weight_init
    if weight_init.startswith("impulse"):
        if not re.fullmatch(r"[1-9]\d*", size := weight_init.removeprefix("impulse")):
            raise InputError(f"weight_init={weight_init!r} needs the side of a window, as in 'impulse3'.")
        if int(size) % 2 == 0:
            raise InputError(
                f"weight_init={weight_init!r}: offsets are counted from the query's own patch, and a window with an "
                f"even side has no centre; use impulse{int(size) + 1}."
            )
        return Impulse(int(size))
    if weight_init.startswith("mimetic"):
        try:
            alpha, beta = map(float, weight_init.removeprefix("mimetic").split("_"))
        except ValueError:
            alpha = beta = math.nan
        if not (math.isfinite(alpha) and math.isfinite(beta)):
            raise InputError(f"weight_init={weight_init!r} needs two numbers, as in 'mimetic0.7_0.7'.")
        return Mimetic(alpha, beta)
    known = [name for name in (*TIMM, SKIP, "impulse3", "mimetic0.7_0.7") if name]
    raise InputError(f"weight_init={weight_init!r} is not known.{did_you_mean(weight_init, known)}")
