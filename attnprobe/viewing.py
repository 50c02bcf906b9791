"""How does one look at the maps of files too large for a page? In a browser, served from this machine.

Only what is looked at is read: one layer of one image at a time.
"""

import webbrowser
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from attnprobe.core.errors import InputError
from attnprobe.core.reference import NOT_SAID, UserImages
from attnprobe.core.run import run_of
from attnprobe.photographs import Photographs
from attnprobe.store.stored import StoredMaps
from attnprobe.view.answers import Answers
from attnprobe.view.described import Viewed
from attnprobe.view.server import Viewer


def view(paths: Sequence[Path | str], *, port: int = 0, browser: bool = True, user: UserImages = NOT_SAID) -> None:
    """Serve the explorer of maps files until it is interrupted; prints its address.

    Args:
        paths: maps files, folders of shards, or runs that have a maps file; images are those of the first.
        port: 0 for any that is free.
        browser: open the page.
        user: where the images are; of itself a file opens only digits, fractals and what lies in its run's folder.

    Raises:
        InputError: nothing that can be drawn over images, or the port is taken.
    """
    with viewer(paths, port=port, user=user) as serving:
        print(serving.url, flush=True)
        if browser:
            webbrowser.open(serving.url)
        serving.serve_forever()


@contextmanager
def viewer(paths: Sequence[Path | str], *, port: int = 0, user: UserImages = NOT_SAID) -> Iterator[Viewer]:
    """A server that listens; `serve_forever` answers."""
    if not paths:
        raise InputError("nothing to view; give one maps file or run, or several.")
    with ExitStack() as open_things:
        runs = []
        for path in map(Path, paths):
            path = path / "maps.h5" if (path / "maps.h5").exists() else path
            maps = open_things.enter_context(StoredMaps.open(path))
            name = (path.parent.name if path.name == "maps.h5" else path.stem) or path.stem
            twice = any(run.name == name for run in runs)
            runs.append(Viewed(str(path) if twice else name, maps, maps.attrs["config"].get("class_names") or ()))
        photographs = Photographs(runs[0].maps.attrs["config"], run_of(runs[0].maps.path), user)
        open_things.callback(photographs.close)
        serving = open_things.enter_context(Viewer(Answers(runs, photographs), port))
        yield serving
