"""A power cut at any moment of training: the newest finished checkpoint is there, and a resumed run ends as usual."""

import re

import pytest
import torch

from attnprobe.io.run import Run
from attnprobe.training.checkpoint import newest_checkpoint
from tests.power_loss import power_cuts
from tests.training.test_loop import config, losses, run_training, weights


def finished(promised):
    """Epochs whose checkpoints were said to be safe."""
    return [int(found[1]) for name in promised if (found := re.search(r"epoch-(\d+)/MANIFEST", name))]


@pytest.mark.promise("power-lost")
def test_the_newest_finished_checkpoint_survives_and_training_resumes_from_it(tmp_path, record_property):
    options = config(epochs=3, keep_checkpoints=1)
    (tmp_path / "disk").mkdir()
    runs = []
    cuts = power_cuts(tmp_path / "disk", lambda: runs.append(run_training(tmp_path / "disk" / "run", options)))
    resumable = {}
    for n, cut in enumerate(cuts):
        run = Run(cut.lay_out(tmp_path / str(n)) / "run")
        done = max(finished(cut.promised), default=0)
        folder, _ = newest_checkpoint(run)
        reached = 0 if folder is None else int(folder.name.rpartition("-")[2])
        assert reached >= done, f"state {n} goes back to epoch {reached}, and {done} was finished"
        resumable.setdefault((done, len(cut.promised) % 2), run)
    assert {done for done, _ in resumable} == {0, 1, 2, 3}
    for run in resumable.values():
        resumed = run_training(run.path, options)
        assert losses(resumed) == losses(runs[0])
        one, two = weights(resumed.run), weights(runs[0].run)
        assert all(torch.equal(one[name], two[name]) for name in one)
    record_property("tried", len(cuts))
