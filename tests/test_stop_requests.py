"""SIGTERM at any moment: a right number or none, and an exit code that says which."""

import json
import os
import random
import signal
import sys
import time

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from attnprobe.capturing import capture
from attnprobe.core.errors import AttnprobeError, InputError, MapsFileError, Stopped, stop_now
from attnprobe.core.spec import CaptureSpec
from attnprobe.data import image_files, load_images, pillow
from attnprobe.data.decode import Decoder
from attnprobe.metrics.engine.slices import measure_slice
from attnprobe.models import build_model, input_spec, read
from attnprobe.store import opening
from attnprobe.workflows.capture import capture_file, measure_live
from attnprobe.workflows.train import train


def test_a_stop_is_none_of_the_errors_that_one_image_or_file_can_cause():
    assert not issubclass(Stopped, Exception) and not issubclass(Stopped, AttnprobeError)
    with pytest.raises(Stopped, match="run the same command again"):
        stop_now(signal.SIGTERM, None)


def stop(*_, **__):
    raise Stopped("stopped on request")


def decode_one(tmp_path, monkeypatch):
    Decoder(stop, None)[0, 0]


def check_one(tmp_path, monkeypatch):
    monkeypatch.setattr(pillow, "open_image", stop)
    pillow.check("x")


def sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(pillow, "open_image", stop)
    pillow.one_size(["x"], (9, 9))


def decode_all(tmp_path, monkeypatch):
    monkeypatch.setattr(pillow, "open_image", stop)
    pillow.decode_all(["x"], (9, 9))


def checkpoint(tmp_path, monkeypatch):
    torch.save({"x": torch.zeros(1)}, tmp_path / "a.pth")
    monkeypatch.setattr(read.torch, "load", stop)
    read.read_checkpoint(tmp_path / "a.pth")


def opened(tmp_path, monkeypatch):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["x"] = 1
    monkeypatch.setattr(opening, "_declared", stop)
    opening.open_hdf5(tmp_path / "a.h5")


def named(tmp_path, monkeypatch):
    monkeypatch.setattr("timm.data.create_dataset", stop)
    sys.modules["attnprobe.data.timm_named"].open_named("torch/cifar10", "val", tmp_path, False)


PLACES = (decode_one, check_one, sizes, decode_all, checkpoint, opened, named)


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place.__name__)
def test_code_that_survives_damage_does_not_survive_a_stop(place, tmp_path, monkeypatch):
    with pytest.raises(Stopped):
        place(tmp_path, monkeypatch)


# --- a count that does not match what was measured is an error, whatever the cause ----------------------------------

OPTIONS = {"depth": 2, "embed_dim": 24, "num_heads": 3, "num_classes": 10}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Ten images, of which one opens and cannot be decoded, which the scan before the work did not see."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for k in range(10):
        Image.fromarray(rng.integers(0, 255, (40 + k, 40, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    whole = (folder / "4.png").read_bytes()
    (folder / "4.png").write_bytes(whole[: len(whole) // 2])
    monkeypatch.setattr(image_files, "of_each", lambda _look, files, _threads: [""] * len(files))
    return folder


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_an_image_that_fails_when_decoded_is_not_counted_among_the_measured(tmp_path, photos, batch_size):
    options = {"data": str(photos), "batch_size": batch_size}
    refuse, skip = (CaptureSpec("vit_16_digits", bad_images=how, **options) for how in ("refuse", "skip"))
    live = {"out": tmp_path / "live", "metrics": ["row_entropy"], "formats": ("json",)}
    for work in (lambda: measure_live(refuse, **live), lambda: capture_file(refuse, out=tmp_path / "maps.h5")):
        with pytest.raises(InputError, match=r"^image '4\.png' of photos cannot be read: .*") as caught:
            work()
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match=r"4\.png.*be decoded"):  # the plan of a maps file names what the scan saw
        capture_file(skip, out=tmp_path / "others.h5")
    (measured,), _ = measure_live(skip, **live)
    m = measured.measurements["row_entropy"]
    assert (m.n_images, "4.png" in m.image_ids, measured.info["n_images"]) == (9, False, 9)
    assert measured.notes[0] == "1 image cannot be read and is left out: 4.png."


def test_a_slice_that_lacks_an_image_is_found_when_it_is_read_again(tmp_path):
    spec = CaptureSpec("vit_16_digits", data="digits", images=12)
    options = {"out": tmp_path / "live", "metrics": ["row_entropy"], "formats": ("json",)}
    (measured,), _ = measure_live(spec, **options)
    assert measured.measurements["row_entropy"].n_images == 12
    model = build_model("vit_16_digits", seed=0)
    images = load_images("digits", spec=input_spec(model), limit=12)
    few = capture(model, images, ("weights",), batch_size=4).batches(order=range(11))
    (tmp_path / "live" / "slices" / "s000000.npz").write_bytes(
        measure_slice((maps for batch in few for maps in batch), ["row_entropy"])
    )
    with pytest.raises(MapsFileError, match="about 11 images where 12"):
        measure_live(spec, **options)


# --- stops at random moments ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch with its maps."""
    from attnprobe.workflows.capture import capture_file

    run = tmp_path_factory.mktemp("stopped") / "run"
    settings = {"epochs": 1, "warmup_epochs": 0, "model_kwargs": {"depth": 3, "embed_dim": 24}}
    train("digits_vit_16", run, settings=settings)
    capture_file(CaptureSpec(run, images=60, untrained=20))
    return run


def commands(run, out):
    """Command -> its arguments, and the file that holds its numbers."""
    few = ["--metric", "row_entropy", "--metric", "similar_blocks"]
    return {
        "capture": (["capture", run, "--images", "60", "--untrained", "20", "-o", out / "maps.h5"], "maps.h5"),
        "stats": (
            ["capture", run, "--stats-only", "--bad-images", "skip", "--images", "130", "--untrained", "20", *few,
             "-o", out],
            "measurements.json",
        ),
        "report": (["report", run, "-o", out, *few], "measurements.json"),
        "verify-drops": (["verify-drops", run, "--blocks", "2,3", "-o", out], "drops.json"),
    }  # fmt: skip


def numbers(path):
    """What a file says, without when it was made; None where there is none."""
    if not path.exists():
        return None
    if path.suffix == ".h5":
        with h5py.File(path) as file:
            return {name: file[f"stages/trunk/{name}"][()].tobytes() for name in ("weights", "tokens")}
    data = json.loads(path.read_text())
    for one in data.get("runs", []):
        for name in ("created", "versions"):
            one["info"].pop(name, None)
    return data


def child(arguments, fresh):
    """The id of a process at a command: a fresh one, or a copy of this one, which has torch loaded already.

    `verify-drops` computes gradients, which PyTorch refuses in a copy of a process whose autograd has started threads,
    as a test before this one may have done: there it is fresh in any case.
    """
    fresh = fresh or arguments[0] == "verify-drops"
    arguments = [str(argument) for argument in arguments]
    if fresh:
        silent = [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
        command = [sys.executable, "-m", "attnprobe", *arguments]
        return os.posix_spawn(sys.executable, command, os.environ, file_actions=silent)
    from attnprobe.__main__ import program

    begins, begin = os.pipe()
    pid = os.fork()
    os.close(begin if pid else begins)
    if pid:
        with open(begins, "rb") as told:
            told.read()  # on a busy machine a copy may not have come to our first line when the first stops are sent
        return pid
    code = 99
    try:
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        torch.set_num_threads(1)
        sys.argv = ["attnprobe", *arguments]
        os.close(begin)
        program()
    except SystemExit as end:
        code = end.code or 0
    finally:
        os._exit(code)


def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


STARTING = 0.7
"""Seconds in which a fresh interpreter may not have come to our first line, so that SIGTERM kills it as any program."""


def check_stops(run, tmp_path, command, times, fresh):
    arguments, file = commands(run, tmp_path / "whole")[command]
    begun = time.monotonic()
    assert ended(child(arguments, fresh)) == 0
    seconds, whole = time.monotonic() - begun, numbers(tmp_path / "whole" / file)
    chance, codes = random.Random(command), []
    for n in range(times):
        arguments, file = commands(run, tmp_path / str(n))[command]
        moment = chance.uniform(0.02, seconds)
        pid = child(arguments, fresh)
        time.sleep(moment)
        os.kill(pid, signal.SIGTERM)
        codes.append(ended(pid))
        too_early = codes[-1] == -signal.SIGTERM and moment < STARTING and (fresh or command == "verify-drops")
        assert codes[-1] in (0, 75) or too_early, (n, moment, codes)
        there = numbers(tmp_path / str(n) / file)
        assert there == whole if codes[-1] == 0 else there in (None, whole), (n, moment)
        if n % 3 == 0:
            assert ended(child(arguments, False)) == 0 or command == "capture"  # which does not replace a whole file
            assert numbers(tmp_path / str(n) / file) == whole, (n, moment)
    return codes


@pytest.mark.promise("stop-requested")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on fork beside threads
@pytest.mark.parametrize(
    "command", ["capture", "stats", "report", pytest.param("verify-drops", marks=pytest.mark.slow)]
)
def test_a_stop_at_a_random_moment_leaves_right_numbers_and_says_so(trained, tmp_path, command, record_property):
    assert check_stops(trained, tmp_path, command, times=3, fresh=False)
    record_property("tried", 3)


@pytest.mark.promise("stop-requested")
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("command", ["capture", "stats", "report", "verify-drops"])
def test_a_hundred_stops(trained, tmp_path, command, record_property):
    codes = check_stops(trained, tmp_path, command, 85, fresh=False)
    codes += check_stops(trained, tmp_path / "fresh", command, 15, fresh=True)
    print(f"{command}: {len(codes)} stops, {codes.count(75)} exit 75, {codes.count(0)} done before, "
          f"{len(codes) - codes.count(75) - codes.count(0)} before the program began")  # fmt: skip
    assert codes.count(75) > 40
    record_property("tried", len(codes))
