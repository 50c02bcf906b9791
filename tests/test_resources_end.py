"""A command whose threads cannot start, or whose files run out: one line, and the same command completes later."""

import os
import resource
import shutil
import threading

import pytest
from PIL import Image

from tests.hostile import checkpoints, maps
from tests.hostile.calling import call
from tests.hostile.cases import TINY

COMMANDS = {
    "capture": ("capture", "model", "--data", "digits", "--images", "6", "-o", "out.h5"),
    "stats": ("capture", "model", "--data", "digits", "--images", "6", "--stats-only", "--metric", "row_entropy",
              "-o", "out"),
    "folder": ("capture", "model", "--data", "images", "-o", "out.h5"),
    "report": ("report", "honest.h5", "--metric", "row_entropy", "-o", "out"),
    "evaluate": ("evaluate", "model", "--data", "digits", "--images", "20"),
    "prune": ("prune", "model", "--blocks", "2", "--data", "digits", "--images", "20", "-o", "out"),
    "train": ("train", "digits_vit_16", *TINY, "-o", "out"),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    """A model, a maps file and images, in the folder in which commands run."""
    checkpoints.write_folder(tmp_path / "model")
    maps.write(tmp_path / "honest.h5")
    (tmp_path / "images").mkdir()
    for k in range(3):
        Image.new("RGB", (20, 20), (80 * k, 0, 0)).save(tmp_path / "images" / f"{k}.png")
    return tmp_path


def no_thread_from(n):
    """Make the n-th thread of this process, and all after it, fail to start as Linux does."""
    started, start = [], threading.Thread.start

    def limited(thread):
        started.append(thread)
        if len(started) >= n:
            raise RuntimeError("can't start new thread")
        start(thread)

    threading.Thread.start = limited


def files_left(n):
    """Let this process open n more files."""
    used = max(map(int, os.listdir("/proc/self/fd"))) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + n, used + n))


@pytest.mark.promise("resources-end")
@pytest.mark.parametrize(
    "command",
    [name if name in ("capture", "train") else pytest.param(name, marks=pytest.mark.slow) for name in COMMANDS],
)
@pytest.mark.parametrize(("limit", "amounts"), [(no_thread_from, (1, 2)), (files_left, (0, 2, 8))])
def test_what_runs_out_is_one_line_and_the_same_command_completes_later(
    folder, command, limit, amounts, record_property
):
    arguments = list(COMMANDS[command])
    for amount in amounts:
        ended = call(arguments, folder, lambda n=amount: limit(n))
        about = f"{limit.__name__}({amount}): {ended.err}"
        assert ended.code in (0, 1), about
        assert "Traceback" not in ended.err and "bug:" not in ended.err, about
        assert len(ended.err.splitlines()) == 1 or ended.code == 0, about
        if ended.code:
            assert call(arguments, folder).code == 0, about
        for made in ("out", "out.h5", "out.parts"):
            path = folder / made
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    record_property("tried", len(amounts))
