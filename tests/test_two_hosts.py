"""Two machines and a folder that both see: here two network namespaces, between which there is one cable."""

import os
import secrets
import subprocess
import sys

import pytest
import torch

import attnprobe as ap
from attnprobe.core.spec import CaptureSpec
from attnprobe.workflows.capture import capture_file

pytestmark = pytest.mark.slow
ADDRESSES = ("10.213.7.1", "10.213.7.2")


def ip(*arguments):
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)


@pytest.fixture
def hosts():
    """Names of two namespaces that reach each other at `ADDRESSES`, and nothing else."""
    tag = secrets.token_hex(3)
    names, ends = [f"host{i}-{tag}" for i in (1, 2)], [f"v{i}{tag}" for i in (1, 2)]
    made = []
    try:
        for name in names:
            ip("netns", "add", name)
            made.append(name)
        ip("link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
        for name, end, address in zip(names, ends, ADDRESSES, strict=True):
            ip("link", "set", end, "netns", name)
            for command in (("addr", "add", f"{address}/24", "dev", end), ("link", "set", end, "up")):
                ip("-n", name, *command)
            ip("-n", name, "link", "set", "lo", "up")
        yield names
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"network namespaces need root and iproute2: {getattr(error, 'stderr', error)}")
    finally:
        for name in made:  # its end of the cable goes with it, and so the other
            subprocess.run(["ip", "netns", "del", name], check=False)


@pytest.mark.promise("capture-stopped")
def test_two_hosts_share_a_capture_and_the_shards_are_those_of_one(hosts, tmp_path):
    options = {"data": "digits", "images": 150, "img_size": 128, "untrained": 0, "seed": 3}
    alone = capture_file(CaptureSpec("vit_16_digits", device="cpu", **options), out=tmp_path / "one.h5")
    shared = tmp_path / "two.h5"
    command = ["attnprobe", "capture", "vit_16_digits", "--device", "cpu", "-o", str(shared)]
    command += [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    running = []
    for host, address in zip(hosts, ADDRESSES, strict=True):
        rendezvous = ["--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "capture",
                      "--rdzv-endpoint", f"{ADDRESSES[0]}:29500", "--rdzv-conf", f"is_host={int(host == hosts[0])}",
                      "--local-addr", address]  # fmt: skip
        torchrun = ["ip", "netns", "exec", host, sys.executable, "-m", "torch.distributed.run", *rendezvous, "-m"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        running.append(subprocess.Popen([*torchrun, *command], env=environment, stderr=subprocess.PIPE, text=True))
    for process in running:
        _, said = process.communicate(timeout=240)
        assert process.returncode == 0, said
    folder = shared.with_suffix(".parts")
    with ap.open_maps(alone) as one, ap.open_maps(folder) as two:
        assert two.complete and two.image_ids == one.image_ids and len(list(folder.glob("shards/*.h5"))) > 2
        for i in range(len(one)):
            a, b = one.maps(images=[i]), two.maps(images=[i])
            assert torch.equal(a.values, b.values) and torch.equal(a.tokens, b.tokens)
