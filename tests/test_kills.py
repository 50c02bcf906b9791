"""Commands that are killed, at each file operation and at random moments: run again, they give the same files."""

import os
import random
import signal
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch

from attnprobe.cli.app import main
from attnprobe.io.fs import TEMPORARY
from attnprobe.store import open_maps
from tests.store.capturing import forked

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:This process:DeprecationWarning"),  # Python 3.12 on fork beside threads
]

MODEL = "vit_16_digits:embed_dim=12,num_heads=3,depth=3"
DATA = ("--data", "digits", "--images", "8", "--device", "cpu")
TRAIN = (
    *("dataset=fractals:3:8", "num_classes=3", "model_kwargs={embed_dim: 12, num_heads: 3, depth: 2}"),
    *("epochs=2", "warmup_epochs=0", "batch_size=8", "device=cpu", "threads=1"),
)

COMMANDS = {
    "capture": ((MODEL, *DATA, "-o", "out/maps.h5", "--what", "weights", "tokens"), {"maps.h5"}),
    "statistics": ((MODEL, *DATA, "--stats-only", "-o", "out", "--metric", "row_entropy"), {"measurements.json"}),
    "report": (("../maps.h5", "-o", "out", "--metric", "row_entropy", "--metric", "similar_blocks"),
               {"measurements.json", "measurements.csv", "report.md"}),
    "import": (("../maps.npz", "--grid", "4x4", "--prefix", "none", "-o", "out/maps.h5"), {"maps.h5"}),
    "prune": ((MODEL, "--blocks", "2", *DATA, "-o", "out"), {"model.safetensors", "config.json"}),
    "train": (("digits_vit_16", "-o", "out", *(x for o in TRAIN for x in ("--set", o))),
              {"model.safetensors"}),
}  # fmt: skip
"""Arguments, and files that are the same in two undisturbed runs."""


def kill_after(seconds):
    """Kill this process when so much time has passed."""
    doomed = os.getpid()
    if os.fork() == 0:
        time.sleep(seconds)
        if os.getppid() == doomed:
            os.kill(doomed, signal.SIGKILL)
        os._exit(0)


def run(name, folder, moment=None):
    """Exit status of the command in this folder, and what it said; it is killed at a moment, if one is given."""
    command = "capture" if name == "statistics" else name

    def work():
        if moment is not None:
            kill_after(moment)
        os.chdir(folder)
        torch.set_num_threads(1)
        with open("said", "w") as said, redirect_stdout(said), redirect_stderr(said):
            try:
                main([command, *COMMANDS[name][0]])
            except SystemExit as end:
                if end.code:
                    said.flush()
                    raise RuntimeError(Path("said").read_text()) from None

    folder.mkdir(exist_ok=True)
    return forked(work)


def files(folder):
    """What every file holds, by name; but for locks, and what a killed process left half-written."""
    paths = [path for path in sorted((folder / "out").rglob("*")) if path.is_file()]
    left = ("run.lock", TEMPORARY)
    whole = [path for path in paths if not any(part.startswith(left) for part in path.parts)]
    return {str(path.relative_to(folder)): content(path) for path in whole}


def content(path):
    """Bytes of a file; of a maps file, which says when it was made, its maps and whose they are."""
    if path.name != "maps.h5":
        return path.read_bytes()
    with open_maps(path) as reader:
        assert reader.complete
        return [(maps.image_ids, maps.values.numpy().tobytes()) for maps in reader]


@pytest.fixture
def sources(tmp_path):
    """A maps file and an array of maps, for those who read some."""
    maps = np.random.default_rng(0).dirichlet(np.ones(16), (4, 3, 2, 16)).astype(np.float32)
    np.savez(tmp_path / "maps.npz", maps=maps)
    whole = tmp_path / "source"
    assert run("capture", whole)[0] == 0
    (whole / "out" / "maps.h5").rename(tmp_path / "maps.h5")


@pytest.fixture
def undisturbed(tmp_path, sources, request):
    """What an undisturbed run of a command leaves, which of its files are always the same, and how long it took."""
    name, whole = request.node.callspec.params["name"], [tmp_path / f"whole{i}" for i in range(2)]
    begun = time.monotonic()
    assert [run(name, folder) for folder in whole] == [(0, "")] * 2
    seconds = (time.monotonic() - begun) / 2
    wanted, other = map(files, whole)
    same = {path for path in wanted if wanted[path] == other.get(path)}
    assert {Path(path).name for path in same} >= COMMANDS[name][1]
    return wanted, same, seconds


def check_again(name, folder, undisturbed):
    """Run a command again that was killed, and compare what is there then."""
    wanted, same, _ = undisturbed
    status, said = run(name, folder)
    assert status == 0 or "exists" in said or "holds a model" in said, (folder.name, said)  # it was complete
    found = files(folder)
    assert found.keys() == wanted.keys(), folder.name
    assert all(found[path] == wanted[path] for path in same), folder.name


@pytest.mark.promise("commands-killed")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_any_operation_gives_the_undisturbed_files_when_it_is_run_again(
    tmp_path, undisturbed, monkeypatch, name, record_property
):
    kills = 0
    while True:
        folder = tmp_path / str(kills)
        monkeypatch.setenv("ATTNPROBE_FAULT", f"any:{kills + 1}:kill")
        status, _ = run(name, folder)
        monkeypatch.setenv("ATTNPROBE_FAULT", "")
        if status == 0:
            break
        assert status == signal.SIGKILL
        kills += 1
        check_again(name, folder, undisturbed)
    assert kills > 5
    print(f"{name}: {kills} kills")
    record_property("tried", kills)


KILLS = 25


@pytest.mark.promise("killed-at-random")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_a_random_moment_gives_the_undisturbed_files_when_it_is_run_again(
    tmp_path, undisturbed, name, record_property
):
    chance, left, n = random.Random(name), [], 0
    while len(left) < KILLS:
        folder, n = tmp_path / str(n), n + 1
        status, _ = run(name, folder, moment=chance.uniform(0, undisturbed[2]))
        if status == 0:
            continue  # it was faster
        assert status == signal.SIGKILL
        left.append(len(list(folder.rglob("*"))))
        check_again(name, folder, undisturbed)
    print(f"{name}: {KILLS} kills of {n} runs of {undisturbed[2]:.2f} s; files and folders there: {sorted(left)}")
    assert len(set(left)) > 1, "kills fell before something was there, and after"
    record_property("tried", KILLS)
