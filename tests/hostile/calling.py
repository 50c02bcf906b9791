"""Commands in a forked copy of this process, bounded in time and memory, that may reach no network."""

import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from attnprobe.cli import app as cli

SECONDS = 20
GROWTH = 3 << 30
"""Bytes of address space that a command may take beyond those of the tests' process."""


@dataclass(frozen=True)
class Outcome:
    """End of a command: exit code (None if it was killed for time), output, and addresses it tried to reach."""

    code: int | None
    out: str
    err: str
    reached: list[str]


def call(arguments: list[str], folder: Path, prepare: Callable[[], object] = lambda: None) -> Outcome:
    """Run a command in `folder`, after `prepare` in its process."""
    streams = [folder / name for name in (".out", ".err", ".reached")]
    child = os.fork()
    if child == 0:
        _child(arguments, folder, prepare, *streams)
    deadline, code = time.monotonic() + SECONDS, None
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.01)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    out, err, reached = (path.read_text(errors="replace") if path.exists() else "" for path in streams)
    for path in streams:
        path.unlink(missing_ok=True)
    return Outcome(code, out, err, reached.splitlines())


def _child(
    arguments: list[str], folder: Path, prepare: Callable[[], object], out: Path, err: Path, reached: Path
) -> None:
    def refuse(_socket: object, address: object) -> None:
        with reached.open("a") as file:
            file.write(json.dumps(str(address)) + "\n")
        raise OSError("no network here")

    code = 99
    try:
        os.chdir(folder)
        for path, descriptor in ((out, 1), (err, 2)):
            opened = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, descriptor)
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + GROWTH, used + GROWTH))
        sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
        with (
            mock.patch.object(socket.socket, "connect", refuse),
            mock.patch.object(socket.socket, "connect_ex", refuse),
        ):
            prepare()
            try:
                cli.main(arguments)
                code = 0
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException as error:
        os.write(2, f"Traceback: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)
