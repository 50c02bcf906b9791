"""The speed of training: words for the progress line, and an estimate of the whole once the first steps are done."""

import sys
import time
from collections.abc import Callable

import torch

WARM_UP = 5
"""First steps, which choose kernels or compile."""

SAMPLE = 20
"""Steps whose time gives the estimate."""

WORTH_SAYING = 60.0
"""Seconds from which on the estimate is shown."""


class Pace:
    """Counts steps and measures their time.

    Args:
        steps: number of steps to come, in all epochs.
        per_step: images of one step, of all processes together.
        say: shows the estimate, a line on stderr; None where another process does.
        clock: a function that returns seconds.
    """

    def __init__(
        self,
        device: torch.device,
        steps: int,
        per_step: int,
        say: Callable[[str], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.device, self.steps, self.per_step, self.say, self.clock = device, steps, per_step, say, clock
        self.done = self._counted = 0
        self._began = 0.0

    def restart(self) -> None:
        """Begin an epoch: the time of the last one's validation is not that of a step."""
        self._counted, self._began = 0, self.clock()

    def step(self) -> str:
        """Count a step; the speed and memory so far, in words."""
        self.done, self._counted = self.done + 1, self._counted + 1
        if self.done in (WARM_UP, WARM_UP + SAMPLE) and self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)  # the host is ahead of a GPU; twice in a run is no loss
        if self.done == WARM_UP:
            self.restart()
        if self.done <= WARM_UP or not self._counted:
            return ""
        seconds = max(self.clock() - self._began, 1e-9) / self._counted
        left = seconds * (self.steps - self.done)
        if self.say and self.done == WARM_UP + SAMPLE and left >= WORTH_SAYING:
            self.say("; ".join(filter(None, (f"about {_duration(left)} at this speed", memory(self.device)))))
        return ", ".join(filter(None, (f"{self.per_step / seconds:,.0f} images/s", memory(self.device))))


def on_stderr(text: str) -> None:
    """Show a line, above the progress bar if there is one."""
    print(text, file=sys.stderr)


def memory(device: torch.device) -> str:
    """`41 GB of 80 GB`, the most that was reserved; nothing but for a GPU, since other programs share a CPU's."""
    if device.type != "cuda":
        return ""
    whole = torch.cuda.get_device_properties(device).total_memory
    return f"{torch.cuda.max_memory_reserved(device) / 1e9:.0f} GB of {whole / 1e9:.0f} GB"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"
