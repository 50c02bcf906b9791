"""`attnprobe view`: maps files in a browser, without torch in the process that serves them."""

import io
import json
import os
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pytest
from PIL import Image

from attnprobe.core.errors import InputError
from attnprobe.photographs import DataSet, Photographs
from attnprobe.viewing import viewer
from tests.store.capturing import capture, plan_for

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


@pytest.mark.parametrize(("stop", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_the_command_serves_without_torch_until_it_is_stopped(maps_file, stop, code):
    run = "import sys; from attnprobe import cli; import atexit; "
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
