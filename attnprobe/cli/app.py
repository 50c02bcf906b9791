"""The program's table of commands, its help, and the one line and exit code of every error.

Data goes to stdout, progress and messages to stderr. Exit codes: 0 fine, 1 the work failed (disk full, memory),
2 usage or bad input, 3 a condition of --fail-on holds, 75 stopped and resumable, 130 Ctrl-C.
"""

import contextlib
import functools
import inspect as inspection
import io
import os
import re
import signal
import sys
import textwrap
import warnings
from collections.abc import Callable
from importlib.metadata import version
from itertools import groupby
from typing import Any

import tyro

from attnprobe.cli.capture import capture, import_, inspect
from attnprobe.cli.help import WIDTH, command_help, paragraphs
from attnprobe.cli.prune import prune, verify_drops
from attnprobe.cli.report import compare, plot, report, view
from attnprobe.cli.tables import explain, list_, schema, verify
from attnprobe.cli.train import demo, evaluate, train
from attnprobe.core.errors import (
    STOPPED,
    AttnprobeError,
    InputError,
    Stopped,
    command_line,
    did_you_mean,
    forget_stop,
    stop_asked,
    stop_now,
)
from attnprobe.core.text import visible

DESCRIPTION = """Attention diagnostics for vision transformers: has attention collapsed, how, and
from which block on.

Start with:

  $ attnprobe demo --fast
  $ attnprobe capture RUN|CHECKPOINT|NAME --data FOLDER -o maps.h5
  $ attnprobe report maps.h5
"""

HELP = {"-h", "--help", "--help-all"}

COMMANDS: dict[str, Callable[..., Any]] = {
    "demo": demo,
    "train": train,
    "evaluate": evaluate,
    "inspect": inspect,
    "capture": capture,
    "import": import_,
    "report": report,
    "compare": compare,
    "verify-drops": verify_drops,
    "prune": prune,
    "plot": plot,
    "view": view,
    "list": list_,
    "explain": explain,
    "verify": verify,
    "schema": schema,
}


def main(arguments: list[str] | None = None) -> None:
    """Run a command and end the process with its exit code."""
    with command_line():
        _main(sys.argv[1:] if arguments is None else arguments)


def _main(arguments: list[str]) -> None:
    """`main`, with messages in the words of the command line."""
    forget_stop()
    signal.signal(signal.SIGTERM, stop_now)
    if not sys.warnoptions:  # a user reads our warnings, not those that libraries address to developers
        warnings.simplefilter("ignore")
        # Libraries' warnings are often laid to their caller: ours are of the default category, and none is of a figure.
        warnings.filterwarnings("default", category=UserWarning, module=r"attnprobe\b")
        warnings.filterwarnings("ignore", module=r"attnprobe\.(plots|reports|workflows\.figure)\b")
        warnings.showwarning = _warn
        os.environ.setdefault("HF_HUB_VERBOSITY", "error")  # it prints two lines for each of six attempts
    try:
        if not arguments or arguments[0] in HELP:
            print(_overview())
            return
        if arguments[0] == "--version":
            print(f"attnprobe {version('attnprobe')}")
            return
        name = arguments[0]
        if name not in COMMANDS:
            raise InputError(f"no command {name!r}.{did_you_mean(name, COMMANDS)}")
        if HELP & set(arguments):
            print(command_help(name, COMMANDS[name], everything="--help-all" in arguments))
            return
        _parsed(name, arguments[1:])()
    except (AttnprobeError, Stopped) as error:
        _end(error, error.exit_code)
    except KeyboardInterrupt:
        _end("stopped; run the same command again to resume", 130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nobody reads us any more, as in `| head`
        sys.exit(0)
    except (MemoryError, OSError) as error:
        _end(f"{type(error).__name__}: {error}; free some space or memory and run the same command again", 1)
    except Exception as error:
        if "start new thread" in str(error):
            _end("no thread starts: the limit of processes (ulimit -u) is reached; end some, run the command again", 1)
        if os.environ.get("ATTNPROBE_DEBUG"):
            raise
        _end(f"bug: {type(error).__name__}: {error} (ATTNPROBE_DEBUG=1 shows where; please report it)", 1)


def _parsed(name: str, arguments: list[str]) -> Callable[[], Any]:
    """The command with its arguments, to be called.

    Raises:
        InputError: they are not what the command takes.
    """
    command, box = COMMANDS[name], io.StringIO()

    @functools.wraps(command)
    def later(*args: Any, **kwargs: Any) -> Callable[[], Any]:
        return functools.partial(command, *args, **kwargs)

    try:
        with contextlib.redirect_stderr(box):
            return tyro.cli(
                later,
                prog=f"attnprobe {name}",
                args=arguments,
                add_help=False,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
            )
    except SystemExit as end:
        if not end.code:
            raise
        usage = _usage(box.getvalue())
        if usage.startswith("Missing") and "maps" in inspection.signature(command).parameters and not arguments:
            usage = usage.replace(": ", ": MAPS, ", 1)  # any number of files may follow, so tyro misses none
        raise InputError(f"{usage}; attnprobe {name} --help lists what it takes.") from None


def _usage(box: str) -> str:
    """What tyro says in a box, in one line: its first part without the help on options, and the options it suggests."""
    inside = [line.strip("│╭╮╰╯").rstrip() for line in box.splitlines()]
    parts = [list(part) for rule, part in groupby(inside, lambda line: "─────" in line or "-----" in line) if not rule]
    said, *more = parts if "╭" in box else parts[1:]  # without frames the title is a part of its own
    first = [line for line in said if not line.startswith(" " * 8)]
    alike = [part[1].split()[0] for part in more if re.match(r" *(Perhaps you meant|Arguments similar)", part[0])]
    text = " ".join(" ".join(first).split()).rstrip(".")
    text = re.sub(r"'None', |, 'None'", "", text)  # the absence of an option is no choice
    return text + (f" (did you mean {', '.join(dict.fromkeys(alike))}?)" if alike else "")


def _overview() -> str:
    """The text of --help: three commands to start with, then all commands, a line each."""
    width = max(map(len, COMMANDS)) + 4
    lines = [
        textwrap.fill(
            paragraphs(command)[0], WIDTH, initial_indent=f"  {name:{width - 2}}", subsequent_indent=" " * width
        )
        for name, command in COMMANDS.items()
    ]
    return "\n".join([DESCRIPTION, "All commands (attnprobe COMMAND --help says more):", "", *lines])


def _warn(message: object, *_where: object, **_more: object) -> None:
    """One line on stderr; a control character from a file's content is spelt out, or it would move the cursor."""
    print(f"attnprobe: {visible(' '.join(str(message).split()))}", file=sys.stderr)


def _end(message: object, code: int) -> None:
    """End with this error; or as stopped, since a stop inside a library may come out as an error of its own."""
    if stop_asked():
        message, code = STOPPED, Stopped.exit_code
    _warn(message)
    sys.exit(code)
