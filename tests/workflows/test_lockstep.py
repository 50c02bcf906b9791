"""Processes that hold one model together capture what one process captures, bit for bit."""

import json

import pytest
import torch

import attnprobe as ap
from attnprobe.core.errors import InputError
from attnprobe.core.spec import CaptureSpec
from attnprobe.workflows.capture import capture_file, measure_live
from attnprobe.workflows.lockstep import Replica
from tests.model_folder import model_folder
from tests.two_processes import under_torchrun

needs_distributed = pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without distributed")
OPTIONS = {"depth": 2, "embed_dim": 24, "num_classes": 10}
COMMON = {"data": "digits", "images": 70, "untrained": 8, "batch_size": 16}
WORDS = ("--data", "digits", "--images", "70", "--untrained", "8", "--batch-size", "16", "--shard", "2")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("model") / "small", "vit_16_digits", **OPTIONS)


@needs_distributed
def test_two_processes_with_half_of_the_weights_each_write_the_file_of_one(checkpoint, tmp_path):
    one, two = tmp_path / "one.h5", tmp_path / "two.h5"
    capture_file(CaptureSpec(checkpoint, dtype="float32", **COMMON), out=one)
    done = under_torchrun("capture", str(checkpoint), *WORDS, "--dtype", "float32", "-o", str(two), timeout=300)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "one.h5", "one.untrained.h5", "two.h5", "two.untrained.h5"
    ]  # fmt: skip
    for name in ("{}.h5", "{}.untrained.h5"):
        pairs = zip(*(ap.open_maps(tmp_path / name.format(n)) for n in ("one", "two")), strict=True)
        for alone, together in pairs:
            assert alone.image_ids == together.image_ids
            assert torch.equal(alone.values, together.values)


@pytest.mark.slow
@needs_distributed
def test_measurements_without_maps_are_those_of_one_process(checkpoint, tmp_path):
    measure_live(CaptureSpec(checkpoint, **COMMON), out=tmp_path / "one", formats=("json",))
    words = ("--stats-only", "-o", str(tmp_path / "two"))
    done = under_torchrun("capture", str(checkpoint), *WORDS, *words, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = (json.loads((tmp_path / n / "measurements.json").read_text())["runs"] for n in ("one", "two"))
    assert one[0]["measurements"] == two[0]["measurements"] and len(one[0]["measurements"]) > 10


def test_a_number_of_processes_that_does_not_fit_is_an_error(monkeypatch):
    with pytest.raises(InputError, match="--shard 2 needs 2 processes"):
        Replica.of_this_process(2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(InputError, match="and there are 3"):
        Replica.of_this_process(2)
