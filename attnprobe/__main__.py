"""The program `attnprobe`, also `python -m attnprobe`, as `torchrun -m attnprobe train ...` needs it.

SIGTERM is handled from here on: importing the command line takes a tenth of a second, in which it would otherwise end
the process as a kill does; and once a command is over, its exit code stands.
"""

import atexit
import os
import signal
import sys

from attnprobe.core.errors import Stopped, stop_now


def program() -> None:
    """Run the command that the process was started with, and end the process with its exit code."""
    code: object = Stopped.exit_code
    atexit.register(_let_nothing_in)  # the first that is registered runs last
    try:
        signal.signal(signal.SIGTERM, stop_now)
        from attnprobe.cli.app import main

        try:
            main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        sys.stdout.flush()
        # From now on only the interpreter shuts down, where an exception would be a traceback and change nothing.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(code if isinstance(code, int) else 1))
    except Stopped as stop:
        print(f"attnprobe: {stop}", file=sys.stderr)
        code = Stopped.exit_code
    except BrokenPipeError:  # nobody reads us any more
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(code)  # type: ignore[arg-type]


def _let_nothing_in() -> None:
    """Ignore SIGTERM while the interpreter is taken down, which puts any other handler back to the one that kills."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


if __name__ == "__main__":
    program()
