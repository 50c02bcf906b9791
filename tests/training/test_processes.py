"""Two processes train as one does with the same images per step."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from attnprobe.core.errors import InputError, WorkError
from attnprobe.io.run import Run
from attnprobe.store import open_maps
from attnprobe.training.processes import Processes, processes
from tests.training.sync_bn import SharedBatchNorm
from tests.training.test_loop import config, losses, run_training
from tests.two_processes import under_torchrun

SCRIPT = """
import json, sys
from pathlib import Path
from attnprobe.training.processes import Processes
from tests.training.sync_bn import share_batch_norm
from tests.training.test_loop import config, run_training
plain = Processes.parallel
Processes.parallel = lambda self, model, *, sync_bn: plain(
    self, share_batch_norm(model) if sync_bn else model, sync_bn=False
)
run_training(Path(sys.argv[1]), config(**json.loads(sys.argv[2])), int(sys.argv[3]), double=True)
"""

SAME = {"drop_path": 0.0, "scale": [1.0, 1.0], "smoothing": 0.0, "epochs": 3, "warmup_epochs": 0, "threads": 1}


TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def two_processes(tmp_path, options, limit, **more):
    script = tmp_path / "run.py"
    script.write_text(SCRIPT)
    command = [*TORCHRUN, str(script), str(tmp_path / "two"), json.dumps(options), str(limit)]
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True, **more)


@pytest.mark.parametrize(
    ("model", "sync_bn"),
    [
        ("vit_16_digits", False),
        ("deepvit_16_digits", True),
        pytest.param("refiner_16_digits", True, marks=pytest.mark.slow),
    ],
)
def test_two_ranks_equal_one_process_with_the_same_global_batch(tmp_path, model, sync_bn):
    """In float64: three norms in a row multiply float32's rounding by hundreds, step by step."""
    options = {**SAME, "model": model, "sync_bn": sync_bn, "scale": (1.0, 1.0), "epochs": 5}  # 30 steps
    one = run_training(tmp_path / "one", config(**options, batch_size=32), 183, double=True)
    process = two_processes(tmp_path, {**options, "batch_size": 16}, 183)
    _, err = process.communicate()
    assert process.returncode == 0, err
    rows = [row.split(",") for row in Run(tmp_path / "two").log.read_text().splitlines()[1:]]
    for row, expected in zip(rows, losses(one), strict=True):
        assert float(row[2]) == pytest.approx(expected["train_loss"], abs=1e-5)
        assert float(row[3]) == pytest.approx(expected["val_loss"], abs=2e-5)
    final = [load_file(Run(p).latest_checkpoint() / "model.safetensors") for p in (one.run.path, tmp_path / "two")]
    for name, value in final[0].items():
        torch.testing.assert_close(final[1][name], value, rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.slow
@pytest.mark.promise("processes-killed")
def test_a_killed_process_ends_the_run_and_the_same_command_goes_on(tmp_path):
    options = {**SAME, "model": "vit_16_digits", "model_kwargs": {"depth": 3}, "batch_size": 8, "epochs": 3}
    options["recovery_interval"] = 4
    process = two_processes(tmp_path, options, 256)
    run = Run(tmp_path / "two")
    deadline = time.monotonic() + 120
    while not run.epochs() and time.monotonic() < deadline:
        time.sleep(0.05)
    children = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    os.kill(int(children[-1]), signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    process = two_processes(tmp_path, options, 256)
    _, err = process.communicate()
    assert process.returncode == 0, err
    resumed = load_file(run.latest_checkpoint() / "model.safetensors")
    (tmp_path / "undisturbed").mkdir()
    process = two_processes(tmp_path / "undisturbed", options, 256)
    _, err = process.communicate()
    assert process.returncode == 0, err
    undisturbed = load_file(Run(tmp_path / "undisturbed" / "two").latest_checkpoint() / "model.safetensors")
    assert all(torch.equal(resumed[name], undisturbed[name]) for name in undisturbed)


def ranks_of(agent):
    """{rank: process} of what a torchrun has started so far."""
    found = {}
    for child in subprocess.run(
        ["pgrep", "-P", str(agent)], capture_output=True, text=True, check=False
    ).stdout.split():
        with suppress(OSError):
            told = dict(part.split("=", 1) for part in Path(f"/proc/{child}/environ").read_text().split("\0") if part)
            if "RANK" in told:
                found[int(told["RANK"])] = int(child)
    return found


def is_alive(pid):
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    return False


def both_run(agent):
    return len(ranks_of(agent.pid)) == 2


def all_ended(ranks):
    return not any(map(is_alive, ranks.values()))


def until(seconds, done, *arguments):
    """Whether it is done in that time."""
    deadline = time.monotonic() + seconds
    while not done(*arguments) and time.monotonic() < deadline:
        time.sleep(0.05)
    return done(*arguments)


TRAINED = {**SAME, "model": "vit_16_digits", "batch_size": 8, "epochs": 3, "recovery_interval": 4}


def training(folder):
    folder.mkdir(exist_ok=True)
    return two_processes(folder, TRAINED, 512)


def trained(folder):
    run = Run(folder / "two")
    assert run.epochs()[-1] == 3
    return {name: value.numpy().tobytes() for name, value in load_file(run.checkpoint(3) / "model.safetensors").items()}


def capturing(folder):
    command = [*TORCHRUN, "-m", "attnprobe", "capture", "vit_16_digits", "--data", "digits", "--images", "1000",
               "--device", "cpu", "-o", str(folder / "maps.h5")]  # fmt: skip
    env = {**os.environ, "PYTHONPATH": os.getcwd(), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def captured(folder):
    with open_maps(folder / "maps.h5") as reader:
        assert reader.complete
        return {i: x.numpy().tobytes() for maps in reader for i, x in zip(maps.image_ids, maps.values, strict=True)}


FAULTS = ("kill 0", "kill 1", "kill torchrun", "stop 0", "stop 1", "pause")


@pytest.mark.promise("processes-killed")
@pytest.mark.slow
@pytest.mark.parametrize(("start", "result", "rounds"), [(training, trained, 28), (capturing, captured, 12)])
def test_killed_stopped_and_orphaned_processes_end_in_time_and_the_next_start_completes(
    tmp_path, start, result, rounds, record_property
):
    """A process is killed, torchrun is, a process stands still until torchrun is told to end, or for a moment only."""
    begun = time.monotonic()
    _, err = (whole := start(tmp_path / "whole")).communicate()
    assert whole.returncode == 0, err
    seconds, wanted = time.monotonic() - begun, result(tmp_path / "whole")
    chance, met, n = random.Random(rounds), Counter(), 0
    while sum(met.values()) < rounds:
        fault, n = FAULTS[n % len(FAULTS)], n + 1
        agent = start(folder := tmp_path / str(n))
        assert until(60, both_run, agent)
        ranks = ranks_of(agent.pid)
        time.sleep(chance.uniform(0, 0.8 * seconds))
        kind, _, whom = fault.partition(" ")
        victim = agent.pid if whom == "torchrun" else ranks[int(whom or n % 2)]
        if agent.poll() is not None or not is_alive(victim):  # it was faster
            agent.communicate()
            continue
        os.kill(victim, signal.SIGKILL if kind == "kill" else signal.SIGSTOP)
        met[fault] += 1
        if kind != "kill":
            time.sleep(2)
            os.kill(agent.pid if kind == "stop" else victim, signal.SIGTERM if kind == "stop" else signal.SIGCONT)
        _, err = agent.communicate(timeout=120)
        assert until(120, all_ended, ranks), (n, fault)
        assert (agent.returncode == 0) or kind != "pause", (n, err)
        if kind != "pause":
            _, err = (again := start(folder)).communicate(timeout=120)
            assert again.returncode == 0 or "exists" in err, (n, fault, err)  # it was complete
        assert result(folder) == wanted, (n, fault)
    print(f"{rounds} rounds of runs of {seconds:.1f} s: {dict(met)}")
    assert len(met) == len(FAULTS)
    record_property("tried", rounds)


UNREADABLE = """
import sys
from pathlib import Path
from attnprobe.core.images import InputSpec
from attnprobe.data import load_images
from attnprobe.io.run import Run
from attnprobe.models import build_model
from attnprobe.training import train
from tests.training.test_loop import OPTIONS, config
folder, model = sys.argv[1:]
images, val = (
    load_images(f"{folder}/images", split, spec=InputSpec((16, 16)), bad_images="skip", resident_bytes=0)
    for split in ("train", "val")
)
plain = images.decoder.read
images.decoder.read = lambda position: plain(None if position == 2 else position)  # no longer what it was when listed
options = config(model=model, epochs=3, warmup_epochs=0, batch_size=1, color_jitter=0.4, grad_accum_steps=4)
train(build_model(model, seed=0, **OPTIONS), images, val, options, Run(Path(folder) / "run"), config_json={})
"""


@pytest.mark.parametrize("model", ["vit_16_digits", "deepvit_16_digits"])
def test_a_process_whose_whole_batch_is_unreadable_keeps_step_with_the_others(tmp_path, model):
    """One image per process and step, and one of them damaged: its process has an empty batch, in every epoch."""
    rng = np.random.default_rng(0)
    for k in range(12):
        path = tmp_path / "images" / ("train" if k < 8 else "val") / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)).save(path)
    (tmp_path / "train.py").write_text(UNREADABLE)
    done = under_torchrun(str(tmp_path / "train.py"), str(tmp_path), model, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [row.split(",") for row in Run(tmp_path / "run").log.read_text().splitlines()[1:]]
    assert len(rows) == 3 and all(0 < float(row[2]) < 5 for row in rows) and "is skipped" in done.stderr


def test_batch_norm_over_processes_is_refused_on_a_cpu_which_pytorch_has_none_for():
    with pytest.raises(InputError, match="sync_bn=true needs GPUs"):
        Processes(torch.device("cpu"), 0, 2, object()).parallel(nn.BatchNorm2d(3), sync_bn=True)


@pytest.fixture
def one_of_torchrun(monkeypatch):
    """The environment of a process that torchrun started alone."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0",
                        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}.items():  # fmt: skip
        monkeypatch.setenv(name, value)


def test_collectives_have_their_usual_limit_and_waiting_for_the_first_process_a_day(one_of_torchrun):
    """The first process may probe or save for longer than a collective may take."""

    def limit(group):
        return group._get_backend(torch.device("cpu")).options._timeout

    with processes(torch.device("cpu")) as group:
        assert limit(group.patient) == timedelta(days=1) > limit(dist.group.WORLD)
        group.wait()
        assert group.total(torch.ones(2)).tolist() == [1, 1] and group.any(True)
        assert isinstance(group.parallel(nn.Linear(2, 2), sync_bn=False), DistributedDataParallel)
    assert not dist.is_initialized()


def test_a_process_whose_torchrun_was_killed_before_they_met_ends(one_of_torchrun, monkeypatch):
    """PyTorch alone would try to reach it for half an hour."""
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setattr("attnprobe.training.processes.REACHED", timedelta(seconds=1))
    begun = time.monotonic()
    with pytest.raises(WorkError, match="run the same command again"), processes(torch.device("cpu")):
        pass
    assert time.monotonic() - begun < 20


def test_more_processes_than_gpus_are_refused_before_they_wait_for_one_another(one_of_torchrun, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(InputError, match="there are 0"), processes(torch.device("cuda")):
        pass
    assert not dist.is_initialized()


@pytest.mark.parametrize("world", [1, 2, 3, 5])
@pytest.mark.parametrize("n", [5, 8, 17])
def test_shares_cover_a_batch_once_and_hardly_differ(world, n):
    shares = [Processes(torch.device("cpu"), rank, world).share(range(n)) for rank in range(world)]
    assert [i for share in shares for i in share] == list(range(n))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_shared_batch_norm_of_one_process_is_batch_norm(monkeypatch):
    monkeypatch.setattr("tests.training.sync_bn.dist.all_reduce", lambda value: None)
    monkeypatch.setattr("tests.training.sync_bn.all_reduce", lambda value: value)
    torch.manual_seed(0)
    ours, theirs = SharedBatchNorm(3).double(), nn.BatchNorm2d(3).double()
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.normal_()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    cotangent = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    (ours(x) * cotangent).sum().backward()
    (theirs(y) * cotangent).sum().backward()
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(ours.weight.grad, theirs.weight.grad)
    for name, buffer in theirs.named_buffers():
        torch.testing.assert_close(dict(ours.named_buffers())[name], buffer)
    torch.testing.assert_close(ours.eval()(x), theirs.eval()(x))
