"""How does a run end on request without losing what it has done? At the next update, not in the middle of one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from attnprobe.core.errors import Stopped


class StopRequest:
    """Remembers that SIGTERM (a scheduler) or SIGINT (Ctrl-C) came; the second one stops at once."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is not None:
            self.end()
        self.signal = number

    def end(self) -> None:
        """Stop: with exit code 130 after Ctrl-C, 75 otherwise."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise Stopped("stopped on request; run the same command again to go on.")


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Catch SIGTERM and SIGINT for the duration; outside the main thread signals are left alone."""
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
