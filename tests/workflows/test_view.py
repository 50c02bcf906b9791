"""`attnprobe view`: maps files in a browser, without torch in the process that serves them."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image

from attnprobe.core.errors import InputError, Stopped
from attnprobe.core.maps import AttentionMaps, TokenGrid
from attnprobe.workflows import view as viewing
from attnprobe.workflows.view import viewer
from attnprobe.workflows.view_images import DataSet, Photographs
from tests.store.capturing import capture, plan_for
from tests.view.stopping import CODES, COMMAND, Browser, started, stop_in_flight

DIGITS = {
    "images": {"data": "digits", "split": "val", "data_dir": None, "images": 3},
    "spec": {"size": [32, 32], "mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "crop_pct": 1.0},
    "class_names": list("0123456789"),
}


@pytest.fixture
def maps_file(tmp_path, make_maps):
    maps = make_maps(images=3)
    return capture(tmp_path / "maps.h5", [maps], plan=plan_for([maps], config=DIGITS))


def test_photographs_are_what_the_model_saw():
    data = DataSet(DIGITS)
    assert len(data.where) == 3
    photographs = Photographs(DIGITS)
    try:
        first = next(iter(data.where))
        for _ in range(2):
            file = photographs(first)
            came = np.asarray(Image.open(io.BytesIO(file)))
            np.testing.assert_array_equal(came, data.pixels([first])[0])
        assert photographs("elsewhere") is None
    finally:
        photographs.close()


@pytest.mark.parametrize("config", [{}, {**DIGITS, "images": {**DIGITS["images"], "data": "/not/here"}}])
def test_a_data_set_that_is_not_at_hand_has_no_photographs(config):
    assert not DataSet(config).where


def test_a_process_that_fails_has_no_photographs(monkeypatch):
    monkeypatch.setattr(sys, "executable", "false")
    photographs = Photographs(DIGITS)
    assert photographs("a") is None and photographs("b") is None
    photographs.close()


def test_runs_are_named_by_folder_and_told_apart(tmp_path, maps_file):
    other = tmp_path / "run" / "maps.h5"
    other.parent.mkdir()
    other.write_bytes(maps_file.read_bytes())
    with viewer([other.parent, other]) as serving:
        index = json.loads(serving.answers.answer("", {}).body.split(b'id="explorer-index">')[1].split(b"</script>")[0])
    assert [run["name"] for run in index["runs"]] == ["run", str(other)]


def test_nothing_to_view_is_an_error():
    with pytest.raises(InputError, match="nothing to view"), viewer([]):
        pass


@pytest.mark.promise("viewer")
@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_the_command_serves_without_torch_until_it_is_stopped(maps_file, stop, code):
    run = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background job ignores it
    )
    run += "from attnprobe.cli import app as cli; import atexit; "
    run += "atexit.register(lambda: print('torch' in sys.modules)); cli.main(['view', sys.argv[1], '--no-browser'])"
    with subprocess.Popen(
        [sys.executable, "-c", run, str(maps_file)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(f"{url}row?run=0&stage=0&site=0&image=1&layer=2&query=3", timeout=10) as reply:
            row = np.frombuffer(reply.read(), "<f4").reshape(2, 7)
        np.testing.assert_allclose(row.sum(1), 1, atol=0.02)
        process.send_signal(stop)
        out, err = process.communicate(timeout=20)
    assert process.returncode == code and out.strip() == "False" and "Traceback" not in err


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """A maps file of 18 MB, each layer of which takes milliseconds to read, and [image, layer, query]."""
    generator = np.random.default_rng(0)
    values = torch.from_numpy(generator.dirichlet(np.ones(145), (6, 6, 6, 145)).astype(np.float32))
    ids = (*DataSet(DIGITS).where, "a", "b", "c")  # three of them have pictures
    maps = AttentionMaps(values, ids, TokenGrid(12, 12, ("cls",)))
    path = tmp_path_factory.mktemp("large") / "maps.h5"
    return capture(path, [maps], plan=plan_for([maps], config=DIGITS)), (6, 6, 145)


def check_stops(large_file, seeds, within):
    """Stop viewers by either signal, or by several, with and without pictures on their way; seconds it took each."""
    kinds = [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT, signal.SIGTERM, signal.SIGINT)]
    ended = []
    for seed in seeds:
        signals = kinds[seed % 3]
        ended.append(stop_in_flight(*large_file, signals, seed, pictures=seed % 2 == 0, within=within))
        assert ended[-1].code in {CODES[number] for number in signals}, ended[-1]
        assert ended[-1].err.startswith("attnprobe: ") and ended[-1].err.count("\n") == 1, ended[-1]
    assert sum(end.waiting > 0 for end in ended) >= 0.8 * len(ended), "requests were in flight"
    return [end.seconds for end in ended]


@pytest.mark.promise("viewer")
def test_a_signal_ends_it_while_it_answers(large_file, record_property):
    check_stops(large_file, range(5), within=60)
    record_property("tried", 5)


@pytest.mark.promise("viewer")
@pytest.mark.slow
def test_a_hundred_signals_end_it_within_two_seconds_each(large_file, record_property):
    seconds = check_stops(large_file, range(100), within=60)
    print(f"100 stops with requests in flight: median {np.median(seconds):.2f} s, longest {max(seconds):.2f} s")
    assert max(seconds) < 2
    record_property("tried", len(seconds))


STUCK = """
import threading, time
from attnprobe.store.stored import StoredMaps
from h5py._objects import phil

def layer(*_):
    with phil:  # HDF5's lock, as a read from a disk that hangs has it
        threading.Event().wait()

StoredMaps.layer = layer
"""


@pytest.mark.parametrize("number", CODES)
def test_a_read_that_never_returns_does_not_keep_it(maps_file, number):
    process, url = started(maps_file, STUCK + COMMAND)
    browser = Browser(url, 0, (3, 3, 7), False)
    browser.question = lambda: "row?run=0&stage=0&site=0&image=1&layer=2&query=3"
    browser.start()
    try:
        while not browser.waiting:
            time.sleep(0.01)
        time.sleep(0.3)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
        browser.join()
    assert process.returncode == CODES[number] and err.startswith("attnprobe: ") and err.count("\n") == 1


def test_in_the_background_it_ends_on_sigterm_and_not_on_ctrl_c(maps_file):
    ignoring = 'trap "" INT; exec "$@"'  # as a shell starts what a script puts into the background
    process = subprocess.Popen(
        ["sh", "-c", ignoring, "sh", sys.executable, "-m", "attnprobe", "view", str(maps_file), "--no-browser"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    try:
        url = process.stdout.readline().strip()
        process.send_signal(signal.SIGINT)
        for _ in range(3):
            with urllib.request.urlopen(f"{url}images", timeout=10) as reply:
                assert json.loads(reply.read())["total"] == 3
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75 and err == "attnprobe: the viewer was stopped on request.\n"


def test_who_waits_for_a_picture_gets_none_when_the_viewer_ends(tmp_path, monkeypatch):
    hung = tmp_path / "hung"
    hung.write_text("#!/bin/sh\nexec sleep 600\n")
    hung.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(hung))
    photographs, came = Photographs(DIGITS), []
    waiting = threading.Thread(target=lambda: came.append(photographs("a")))
    waiting.start()
    while photographs._process is None:
        time.sleep(0.01)
    photographs.close()
    waiting.join(timeout=60)
    assert came == [None] and not waiting.is_alive()
    assert photographs("a") is None and photographs._process is None, "no other process starts"
    photographs.close()


def test_signals_are_handled_as_before_when_it_is_over(maps_file, monkeypatch):
    before = [signal.getsignal(number) for number in CODES]
    for number, error in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)):
        monkeypatch.setattr(viewing.Viewer, "handle_request", lambda _, number=number: signal.raise_signal(number))
        with pytest.raises(error):
            viewing.view([maps_file], browser=False)
        assert [signal.getsignal(number) for number in CODES] == before
