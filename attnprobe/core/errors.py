"""Errors that are raised on purpose, with the exit code each has on the command line.

Every message says what was expected, what came instead and what to do next, in one line.
"""

import difflib
from collections.abc import Iterable, Sequence


class AttnprobeError(Exception):
    """Base of every error attnprobe raises on purpose; the command line prints it as one line."""

    exit_code = 2


class InputError(AttnprobeError, ValueError):
    """The user's input (name, option, file, image) cannot be used as it is."""


class ShapeError(InputError):
    """A tensor has other axes than its noun promises."""


class CheckpointError(InputError):
    """A checkpoint is missing, damaged, unsafe, or of another architecture."""


class MapsFileError(InputError):
    """A maps file or folder is truncated, damaged, foreign, incomplete or of a newer schema."""


class CaptureError(AttnprobeError, RuntimeError):
    """Attention could not be captured, or what was captured is not what the model computed."""


class WorkError(AttnprobeError, RuntimeError):
    """Good input, but the work failed: disk full, I/O error, out of memory, loss not finite."""

    exit_code = 1


class GateFailed(AttnprobeError):
    """A `--fail-on` expression was true."""

    exit_code = 3


class InUse(AttnprobeError):
    """Another process writes to the same output; running the same command later continues."""

    exit_code = 75


class Stopped(BaseException):
    """A request to stop (SIGTERM), raised wherever the program is; running the command again resumes.

    Like KeyboardInterrupt it is no Exception: code that tolerates a broken image or file must not take a stop for one
    and continue with a wrong count.
    """

    exit_code = 75


def stop_now(*_signal: object) -> None:
    """The handler of SIGTERM.

    Raises:
        Stopped: always.
    """
    raise Stopped("stopped on request; run the same command again to resume.")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of an error message about an unknown name: the nearest known ones, then the list."""
    known = sorted(set(known))
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    shown = known if len(known) <= 24 else [*known[:24], f"and {len(known) - 24} more"]
    return f"{hint} Known: {', '.join(shown)}."


def check_choice(option: str, value: object, choices: Sequence[object]) -> None:
    """Raises InputError unless `value` is one of the `choices` of an option."""
    if value not in choices:
        raise InputError(f"{option}={value!r} is not a choice.{did_you_mean(str(value), map(str, choices))}")
