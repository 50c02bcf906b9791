"""A capture over Ray writes the file of a capture alone, whoever dies on the way."""

import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch

import attnprobe as ap
from attnprobe.core.errors import InputError, WorkError
from attnprobe.core.spec import CaptureSpec
from attnprobe.store import layout
from attnprobe.workflows.capture import capture_file, measure_live
from tests.model_folder import model_folder

ray = pytest.importorskip("ray", reason="ray is not installed: pip install ray")

from attnprobe.workflows import over_ray  # noqa: E402
from attnprobe.workflows.over_ray import capture_over_ray  # noqa: E402

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::ResourceWarning"
)

COMMON = {"data": "digits", "images": 150, "untrained": 20, "batch_size": 8, "device": "cpu"}
START = {"include_dashboard": False, "log_to_driver": False, "configure_logging": False}


def small_parts():
    """What every process of Ray does first: parts of few images; and it dies at shard 1 if it is told to.

    DIE is "before" or "after" the commit; ONCE names a file, which the process that dies makes.
    """
    from pathlib import Path

    from attnprobe.io import fs
    from attnprobe.store import layout

    layout.SHARD_BYTES = 1 << 16
    when, once, link = os.environ.get("DIE"), os.environ.get("ONCE"), fs.link

    def dying(source, name):
        dies = name.name == "s000001.h5" and not (once and Path(once).exists())
        if dies and once:
            Path(once).touch()
        if dies and when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        link(source, name)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)

    if when:
        fs.link = dying


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("model") / "deep")


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SHARD_BYTES", 1 << 16)
        return capture_file(CaptureSpec(checkpoint, **COMMON), out=tmp_path_factory.mktemp("alone") / "maps.h5")


@pytest.fixture(scope="module", autouse=True)
def own_cluster():
    """Ray as a user has it who did not ask for more, and stopped in the end."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        yield
        ray.shutdown()


@pytest.fixture(scope="module")
def started():
    """`started(**environment)` starts Ray on two cores of this machine, its processes with these variables."""
    running = []

    def start(address=None, **environment):
        how = (address, environment)
        if ray.is_initialized() and how in running:
            return
        ray.shutdown()
        running[:] = [how]
        root = os.path.dirname(os.path.dirname(ap.__file__))
        paths = os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])
        runtime = {"worker_process_setup_hook": small_parts, "env_vars": {"PYTHONPATH": paths, **environment}}
        where = {"num_cpus": 2} if address is None else {"address": address}
        for patience in (2, 1, 0):
            try:
                ray.init(runtime_env=runtime, **where, **START)
                break
            except Exception as error:  # on a busy machine it gives up after 30 seconds
                ray.shutdown()
                if not patience:
                    pytest.skip(f"Ray does not start here: {error}")

    return start


def assert_same(one, two):
    with ap.open_maps(one) as a, ap.open_maps(two) as b:
        assert b.complete and a.image_ids == b.image_ids and a.attrs["certificate"] == b.attrs["certificate"]
        for x, y in zip(a, b, strict=True):
            assert (x.stage, x.site) == (y.stage, y.site) and torch.equal(x.values, y.values)
            assert torch.equal(x.tokens, y.tokens) and torch.equal(x.outcome.probability, y.outcome.probability)


def check(alone, made):
    assert_same(alone, made)
    assert_same(alone.with_suffix(".untrained.h5"), made.with_suffix(".untrained.h5"))
    assert sorted(p.name for p in made.parent.iterdir()) == ["maps.h5", "maps.untrained.h5"], "nothing else is left"


def test_two_actors_write_the_file_of_one_process(checkpoint, alone, tmp_path, started):
    started()
    made = capture_over_ray(CaptureSpec(checkpoint, **COMMON), out=tmp_path / "maps.h5")
    assert made == tmp_path / "maps.h5"
    check(alone, made)


@pytest.mark.slow
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_actor_that_dies_at_a_commit_changes_nothing(checkpoint, alone, tmp_path, started, when):
    started(DIE=when, ONCE=str(tmp_path / "died"))
    out = tmp_path / "out" / "maps.h5"
    out.parent.mkdir()
    made = capture_over_ray(CaptureSpec(checkpoint, **COMMON), out=out)
    assert (tmp_path / "died").exists()
    check(alone, made)


@pytest.mark.slow
def test_a_part_that_kills_whoever_takes_it_ends_the_work_in_one_line(checkpoint, tmp_path, started, monkeypatch):
    monkeypatch.setattr(over_ray, "TRIES", 2)
    started(DIE="before")
    with pytest.raises(WorkError, match="2 actors of Ray died at images") as error:
        capture_over_ray(CaptureSpec(checkpoint, **{**COMMON, "untrained": 0}), out=tmp_path / "maps.h5")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_live_measurements_over_ray_are_those_of_one_process(checkpoint, tmp_path, started):
    started()
    how = {"metrics": ("row_entropy", "similar_blocks"), "formats": ("json",)}
    (here,), _ = measure_live(CaptureSpec(checkpoint, **COMMON), out=tmp_path / "alone", **how)
    (there,), files = over_ray.measure_over_ray(CaptureSpec(checkpoint, **COMMON), out=tmp_path / "ray", **how)
    assert files == [tmp_path / "ray" / "measurements.json"]
    assert len(list((tmp_path / "ray" / "slices").glob("*.npz"))) > 1
    for name, m in here.measurements.items():
        assert np.array_equal(m.mean, there.measurements[name].mean, equal_nan=True)
        assert m.baselines.keys() == there.measurements[name].baselines.keys()


def test_an_error_of_the_capture_is_its_own(checkpoint, tmp_path, started):
    started()
    with pytest.raises(InputError, match="no-such-folder") as error:
        capture_over_ray(CaptureSpec(checkpoint, data="no-such-folder/a"), out=tmp_path / "maps.h5")
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_driver_that_was_killed_is_resumed_by_the_same_command(checkpoint, alone, tmp_path, monkeypatch):
    out = tmp_path / "maps.h5"
    program = (
        "import ray, tests.workflows.test_over_ray as t\n"
        "from pathlib import Path\n"
        "ray.init(num_cpus=2, runtime_env={'worker_process_setup_hook': t.small_parts}, **t.START)\n"
        f"spec = t.CaptureSpec({str(checkpoint)!r}, **t.COMMON)\n"
        f"t.capture_over_ray(spec, out=Path({str(out)!r}))\n"
    )
    root = os.path.dirname(os.path.dirname(ap.__file__))
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    killed = subprocess.Popen([sys.executable, "-c", program], env=environment, stderr=subprocess.DEVNULL)
    shards = out.with_suffix(".parts") / "shards"
    deadline = time.monotonic() + 240
    while killed.poll() is None and not list(shards.glob("*.h5")) and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    time.sleep(10)  # Ray ends the actors of a driver that is gone
    assert not out.exists() or list(shards.glob("*.h5")) == []
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    check(alone, out)


@pytest.mark.slow
def test_a_node_that_goes_takes_no_part_with_it(checkpoint, alone, tmp_path, started):
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        started(address=cluster.address)
        shards = tmp_path / "maps.parts" / "shards"

        def remove():
            deadline = time.monotonic() + 300
            while not list(shards.glob("*.h5")) and time.monotonic() < deadline:
                time.sleep(0.02)
            cluster.remove_node(second, allow_graceful=False)

        removing = threading.Thread(target=remove)
        removing.start()
        made = capture_over_ray(CaptureSpec(checkpoint, **COMMON), out=tmp_path / "maps.h5")
        removing.join()
        check(alone, made)
    finally:
        ray.shutdown()
        cluster.shutdown()
