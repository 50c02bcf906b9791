"""Examples run as they are written, on small real input."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import save_file

from attnprobe.core.spec import CaptureSpec
from attnprobe.models import build_model
from attnprobe.models.describe import config_json
from attnprobe.workflows.capture import capture_file
from attnprobe.workflows.train import train

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(folder, *command):
    """Exit status and everything said, with this Python's programs first on the path."""
    environment = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "OMP_NUM_THREADS": "1", "HOME": str(folder)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    model = build_model("vit_16_digits", num_classes=10, seed=0)
    save_file(model.state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config_json("vit_16_digits", model, {"num_classes": 10})))
    return capture_file(CaptureSpec(folder, data="digits", images=16, untrained=0), out=folder / "maps.h5")


def test_ones_own_loop_hears_of_its_attention_every_epoch(tmp_path):
    status, told = run(tmp_path, sys.executable, EXAMPLES / "own_loop.py", "--epochs", "1")
    assert status == 0 and "epoch 1: similar" in told, told
    assert (tmp_path / "own-loop" / "probe.csv").exists()


def test_a_hugging_face_model_is_measured(tmp_path):
    status, told = run(tmp_path, sys.executable, EXAMPLES / "hugging_face.py")
    assert status == 0 and "read at functional 6" in told and "similar_blocks: measured at weights" in told, told


def test_a_file_is_read_without_attnprobe(tmp_path, maps):
    script = EXAMPLES / "read_maps.py"
    assert "import attnprobe" not in script.read_text()
    status, told = run(tmp_path, sys.executable, script, maps)
    assert status == 0 and "block 16: head" in told and "16 images; right" in told, told


def test_the_gate_stops_a_model_whose_blocks_repeat_and_says_why(tmp_path, maps):
    status, told = run(tmp_path, EXAMPLES / "ci_gate.sh", maps)
    assert status == 3 and "similar_blocks>3" in told, told
    assert (tmp_path / "report" / "report.html").exists()


@pytest.mark.parametrize("part", ["training", "capture"])
def test_a_part_of_the_gpu_benchmark_runs_without_one(part):
    done = runpy.run_path(str(EXAMPLES / "benchmarks" / "gpu.py"))["run"](part, "cpu", True)
    assert done["status"] == "ok" and done["rows"], done


@pytest.mark.slow
def test_every_part_of_the_gpu_benchmark_runs(tmp_path):
    status, told = run(tmp_path, sys.executable, EXAMPLES / "benchmarks" / "gpu.py", "--device", "cpu", "--tiny")
    assert status == 0, told
    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert list(parts) == ["tests", "training", "compiled", "loader", "capture", "profile"]
    counts = {what: value for what, value, _unit in parts["tests"]["rows"]}
    assert counts["tests passed"] > 40 and counts["tests failed"] == counts["tests skipped"] == 0
    assert {what.split(",")[0] for what, *_ in parts["training"]["rows"]} >= {"vit_16", "deepvit_32", "refiner_s"}
    assert (tmp_path / "gpu.md").read_text() in told


def test_a_part_that_fails_or_hangs_is_reported_with_what_it_had_found(monkeypatch):
    gpu = runpy.run_path(str(EXAMPLES / "benchmarks" / "gpu.py"))
    monkeypatch.setitem(gpu["LIMITS"], "loader", 0.05)
    hung, failed = gpu["run"]("loader", "cpu", True), gpu["run"]("profile", "nowhere", True)
    assert (hung["status"], hung["rows"]) == ("stopped after 0.25 s", [])
    assert failed["status"] == "exit status 1" and "nowhere" in "".join(failed["messages"])
    table = gpu["markdown"]({"device": "none"}, {"loader": hung, "profile": failed})
    assert "| loader | **stopped after 0.25 s** |" in table and "| profile | **exit status 1** |" in table


@pytest.mark.slow
def test_two_processes_share_a_capture(tmp_path):
    short = {"epochs": 1, "warmup_epochs": 0, "model_kwargs": {"depth": 2}}
    train("digits_vit_16", tmp_path / "run", settings=short)
    status, told = run(tmp_path, EXAMPLES / "distributed_capture.sh", "run", "digits")
    assert status == 0 and "360 images, every checksum right" in told, told


def test_the_plan_for_a_million_images_is_the_one_that_is_printed(tmp_path):
    status, told = run(tmp_path, sys.executable, EXAMPLES / "large_scale.py")
    assert status == 0, told
    tables = [line for line in told.splitlines() if line.startswith("| ")]
    assert len(tables) == 30
    shown = (EXAMPLES / "large_scale.md").read_text().splitlines()
    assert [line for line in shown if line.startswith("| ")] == tables
