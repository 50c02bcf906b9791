"""The explorer of maps files of any size: a server for a browser on this machine.

Only what is shown is read: one layer of one image at a time.
"""

import atexit
import os
import signal
import sys
import threading
import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attnprobe.core.errors import InputError, Stopped
from attnprobe.io.reference import NOT_SAID, UserImages
from attnprobe.io.remote import place
from attnprobe.io.run import maps_of, name_of, run_of
from attnprobe.store.stored import StoredMaps
from attnprobe.view.answers import Answers
from attnprobe.view.described import Viewed
from attnprobe.view.server import Viewer
from attnprobe.workflows.view_images import Photographs

ASK_EVERY = 0.1
"""Seconds between two checks for a signal."""


def view(paths: Sequence[Path | str], *, port: int = 0, browser: bool = True, user: UserImages = NOT_SAID) -> None:
    """Serve the explorer of maps files until a signal comes; prints its address.

    Args:
        paths: maps files, folders of shards, or runs that have a maps file; images are those of the first.
        port: 0 for any that is free.
        browser: open the page.
        user: the images; without it a file opens only digits, fractals and what is inside its run's folder.

    Raises:
        InputError: no maps that can be drawn over images, or the port is in use.
        KeyboardInterrupt: on SIGINT, as Ctrl-C sends it.
        Stopped: on SIGTERM.
    """
    with _signals_as_before(), viewer(paths, port=port, user=user) as serving:
        print(serving.url, flush=True)
        if browser:
            webbrowser.open(serving.url)
        serving.timeout, came = ASK_EVERY, _noted_signals()
        while not came:
            serving.handle_request()
    if serving.busy:
        atexit.register(_end_now, 130 if came[0] == signal.SIGINT else Stopped.exit_code)
    if came[0] == signal.SIGINT:
        raise KeyboardInterrupt
    raise Stopped("the viewer was stopped on request.")


@contextmanager
def viewer(paths: Sequence[Path | str], *, port: int = 0, user: UserImages = NOT_SAID) -> Iterator[Viewer]:
    """A listening server; `serve_forever` answers. On exit no request is pending, or `busy` is true."""
    if not paths:
        raise InputError("nothing to view; give one maps file or run, or several.")
    with ExitStack() as files:
        runs = []
        for path in map(place, paths):
            path = maps_of(path)
            maps = files.enter_context(StoredMaps.open(path))
            name = name_of(path)
            twice = any(run.name == name for run in runs)
            runs.append(Viewed(str(path) if twice else name, maps, maps.attrs["config"].get("class_names") or ()))
        photographs = Photographs(runs[0].maps.attrs["config"], run_of(runs[0].maps.path), user)
        serving = Viewer(Answers(runs, photographs), port)
        try:
            yield serving
        finally:
            photographs.close()  # a request may be waiting for it
            serving.server_close()
            if serving.busy:  # with HDF5's lock, for which closing would wait
                files.pop_all()


@contextmanager
def _signals_as_before() -> Iterator[None]:
    """Restore the handlers of SIGINT and SIGTERM on exit."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if signal.getsignal(number) != handler:
                signal.signal(number, handler)


def _noted_signals() -> list[int]:
    """A list that each SIGINT and SIGTERM is appended to from now on, instead of interrupting the work.

    An ignored signal stays ignored, as SIGINT in a background job of a script; outside the main thread nothing changes.
    """
    came: list[int] = []
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, lambda number, _frame: came.append(number))
    return came


def _end_now(code: int) -> None:
    """End the process while a read is pending, as on a disk that hangs; safe, since nothing is being written."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
