"""Which checkpoint of a run the commands take, and what they say where the newest is damaged."""

import json
import re
import shutil

import pytest

from attnprobe.io.run import Run
from attnprobe.store import open_maps
from attnprobe.workflows.train import train

COMMANDS = {
    "capture": ["-o", "maps.h5", "--images", "20", "--untrained", "0"],
    "inspect": [],
    "prune": ["--blocks", "2", "-o", "smaller", "--images", "20"],
    "verify-drops": ["--blocks", "2", "--images", "20"],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("trained") / "run"
    options = {"model_kwargs": {"depth": 3}, "epochs": 2, "warmup_epochs": 0, "keep_checkpoints": 2}
    return train("digits_vit_16", path, settings=options).run


@pytest.fixture
def run(trained, tmp_path):
    """A copy, whose newest checkpoint is damaged."""
    copy = Run(tmp_path / "run")
    shutil.copytree(trained.path, copy.path)
    spoil(copy, 2)
    return copy


def spoil(run, epoch):
    path = run.checkpoint(epoch) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


@pytest.fixture
def call(call_command):
    return call_command


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_that_measure_refuse_an_older_checkpoint(run, call, tmp_path, command):
    code, out, err = call(command, str(run.path), *COMMANDS[command])
    assert code == 2 and out == "" and err.startswith("attnprobe: ") and err.count("\n") == 1
    for told in ("epoch-0002 is damaged", str(run.checkpoint(1)), "--checkpoint 1", "--allow-older"):
        assert told in err
    assert {path.name for path in tmp_path.iterdir()} <= {"run"}, "nothing was made"


@pytest.mark.parametrize("command", COMMANDS)
def test_they_say_which_they_take_instead_when_allowed_to(run, call, command):
    code, out, err = call(command, str(run.path), *COMMANDS[command], "--allow-older")
    assert code == 0 and out and re.search(r"epoch-0002 is damaged .*; epoch-0001 is used", err), err


@pytest.mark.parametrize("command", COMMANDS)
def test_a_named_checkpoint_is_taken_and_a_damaged_one_refused(run, call, command):
    code, out, err = call(command, str(run.path), *COMMANDS[command], "--checkpoint", "1")
    assert code == 0 and out and "damaged" not in err
    code, _, err = call(command, str(run.path), *COMMANDS[command], "--checkpoint", "2", "--allow-older")
    assert code == 2 and "epoch-0002 is damaged" in err
    code, _, err = call(command, "vit_16_digits", *COMMANDS[command], "--checkpoint", "2")
    assert code == 2 and "vit_16_digits is none" in err


def test_what_is_captured_is_of_the_checkpoint_that_was_named_into_the_run(run, trained, call):
    def sha256(epoch):
        return json.loads((run.checkpoint(epoch) / "MANIFEST.json").read_text())["model.safetensors"]["sha256"]

    command = ("capture", str(run.path), "--images", "20", "--untrained", "0", "--overwrite")
    for epoch, options in ((1, ["--allow-older"]), (1, ["--checkpoint", "1"]), (2, ["--allow-older"]), (2, [])):
        if epoch == 2:
            shutil.copy(trained.checkpoint(2) / "model.safetensors", run.checkpoint(2) / "model.safetensors")
        code, out, _ = call(*command, *options)
        assert code == 0 and out.strip() == str(run.maps)
        assert open_maps(run.maps).attrs["checkpoint_sha256"] == sha256(epoch)


def test_a_report_of_the_run_says_what_happened_while_it_trained(run, call, tmp_path):
    code, out, err = call("train", "digits_vit_16", "-o", str(run.path), "--set", "model_kwargs={depth: 3}", "--set",
                          "epochs=2", "--set", "warmup_epochs=0", "--set", "keep_checkpoints=2")  # fmt: skip
    told = r"epoch-0002 is damaged \(model\.safetensors is not what was written\); training resumed from epoch-0001"
    assert code == 0 and re.search(told, err) and re.search(told, out)
    assert call("capture", str(run.path), "--images", "20", "--untrained", "0")[0] == 0
    code, out, _ = call("report", str(run.path), "-o", "report", "--formats", "json", "md")
    assert code == 0
    (note,) = json.loads((tmp_path / "report" / "measurements.json").read_text())["runs"][0]["notes"]
    assert re.search(told, note)
