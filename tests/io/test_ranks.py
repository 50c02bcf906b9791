"""Who may work in a folder."""

import os
import subprocess
import sys
import threading

from attnprobe.core.errors import InUse
from attnprobe.io.ranks import held

HOLD = """
import pathlib, sys
from attnprobe.io.ranks import held
with held(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""

JOB = {"WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "one", "MASTER_ADDR": "a", "MASTER_PORT": "1"}


def holder(folder, environment):
    return subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, env={**os.environ, **environment},
    )  # fmt: skip


def refusal(folder):
    """What another thread of this process is told that asks for a folder; "" if it gets it."""
    told = []

    def ask():
        try:
            with held(folder):
                told.append("")
        except InUse as error:
            told.append(str(error))

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    return told[0]


def test_what_a_command_calls_may_ask_again_and_the_end_lets_go(tmp_path):
    folder = tmp_path / "new" / "run"
    with held(folder):
        with held(folder), held(tmp_path / "new" / ".." / "new" / "run"):
            pass
        assert f"in use by pid {os.getpid()} " in refusal(folder)
    assert refusal(folder) == ""


def test_all_processes_of_one_job_work_in_a_folder_and_no_other(tmp_path):
    ranks = [holder(tmp_path, {**JOB, "RANK": str(rank)}) for rank in range(2)]
    assert [rank.stdout.readline() for rank in ranks] == ["held\n"] * 2
    for other in ({}, {**JOB, "RANK": "0", "TORCHELASTIC_RUN_ID": "two"}):
        _, err = holder(tmp_path, other).communicate()
        assert "is in use by pid" in err.splitlines()[-1]
    ranks[0].communicate()
    _, err = holder(tmp_path, {}).communicate()
    assert "is in use by pid" in err, "the second is still at work"
    ranks[1].communicate()
    out, _ = holder(tmp_path, {}).communicate()
    assert out == "held\n"
