"""Commands that are killed at each of their file operations: running the command again gives the undisturbed files."""

import os
import signal
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


def run(name, folder):
    """Exit status of the command in this folder, and what it said."""
    command = "capture" if name == "statistics" else name

    def work():
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


@pytest.mark.promise("commands-killed")
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_killed_at_any_operation_gives_the_undisturbed_files_when_it_is_run_again(
    tmp_path, sources, monkeypatch, name, record_property
):
    whole = [tmp_path / f"whole{i}" for i in range(2)]
    assert [run(name, folder) for folder in whole] == [(0, "")] * 2
    wanted, other = map(files, whole)
    same = {path for path in wanted if wanted[path] == other.get(path)}
    assert {Path(path).name for path in same} >= COMMANDS[name][1]
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
        status, said = run(name, folder)
        assert status == 0 or "exists" in said or "holds a model" in said, (kills, said)  # it was complete
        found = files(folder)
        assert found.keys() == wanted.keys(), kills
        assert all(found[path] == wanted[path] for path in same), kills
    assert kills > 5
    record_property("tried", kills)
