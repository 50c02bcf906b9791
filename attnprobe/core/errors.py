"""Errors that are raised on purpose, with the exit code each has on the command line.

Every message says what was expected, what came instead and what to do next, in one line.
"""

import difflib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager


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


STOPPED = "stopped on request; run the same command again to resume."

_stop_asked = False


def stop_now(*_signal: object) -> None:
    """The handler of SIGTERM.

    Raises:
        Stopped: always.
    """
    global _stop_asked
    _stop_asked = True
    raise Stopped(STOPPED)


def stop_asked() -> bool:
    """True after a request to stop: an error that a library gives then may be what it made of the stop."""
    return _stop_asked


def forget_stop() -> None:
    """Begin anew, in a process that runs several commands."""
    global _stop_asked
    _stop_asked = False


_on_command_line = False


@contextmanager
def command_line() -> Iterator[None]:
    """While the program `attnprobe` runs a command: messages name its options, which else are arguments in Python."""
    global _on_command_line
    before, _on_command_line = _on_command_line, True
    try:
        yield
    finally:
        _on_command_line = before


def option(name: str, value: object = "", python: str = "") -> str:
    """An option as the reader of a message writes it: `--data-dir photos`, or `data_dir='photos'` in Python.

    Args:
        name: of the option, without dashes in front; `value`: what follows it, if anything.
        python: the argument in Python where it has another name or type.
    """
    if _on_command_line:
        return f"--{name} {value}".rstrip()
    return python or name.replace("-", "_") + (f"={value!r}" if value != "" else "")


LISTED = 24
"""Most names that a message lists; of more it names the nearest ones alone."""


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'a' or 'b'?`: the names that are most alike, or that contain it; empty if none is."""
    known, part = sorted(set(known)), name.lower()
    alike = difflib.get_close_matches(name, known, n=2, cutoff=0.75)
    within = [entry for entry in known if len(part) > 3 and part in entry.lower()]
    near = list(dict.fromkeys([*alike, *within]))[:2] or difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""


def did_you_mean(name: str, known: Iterable[str], lister: str = "") -> str:
    """The end of an error message about an unknown name: the nearest known ones, then the list.

    Args:
        lister: the command that lists all, for names that are too many for a message.
    """
    known = sorted(set(known))
    if not known:
        return " There are none."
    if len(known) <= LISTED:
        return f"{nearest(name, known)} Known: {', '.join(known)}."
    return f"{nearest(name, known)} {len(known)} names are known{f': {lister}' if lister else ''}."


def check_choice(option: str, value: object, choices: Sequence[object]) -> None:
    """Raises InputError unless `value` is one of the `choices` of an option."""
    if value not in choices:
        raise InputError(f"{option}={value!r} is not a choice.{did_you_mean(str(value), map(str, choices))}")
