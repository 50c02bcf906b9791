import os
import subprocess
import sys

import pytest

from attnprobe.core.errors import InUse
from attnprobe.core.lock import FileLock

HOLD = "import sys, pathlib; from attnprobe.core.lock import FileLock; lock = FileLock(pathlib.Path(sys.argv[1])); "


def holder(path):
    code = HOLD + "print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_process_is_told_who_holds_the_lock(tmp_path):
    with holder(tmp_path / "run.lock") as process:
        with pytest.raises(InUse, match=f"in use by pid {process.pid} on ") as caught:
            FileLock(tmp_path / "run.lock")
        assert caught.value.exit_code == 75
        process.stdin.close()


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    with holder(tmp_path / "run.lock") as process:
        process.kill()
    lock = FileLock(tmp_path / "run.lock")  # raises InUse if it is held
    assert lock.path == tmp_path / "run.lock"
    lock.release()


def test_the_same_process_cannot_take_it_twice(tmp_path):
    lock = FileLock(tmp_path / "run.lock")
    with pytest.raises(InUse, match=f"pid {os.getpid()} "):
        FileLock(tmp_path / "run.lock")
    lock.release()
    lock.release()
    FileLock(tmp_path / "run.lock").release()


def test_a_lock_whose_file_was_removed_while_we_waited_is_not_taken_for_ours(tmp_path, monkeypatch):
    path = tmp_path / "run.lock"
    acquire, calls = FileLock._acquire, []

    def removed_first(self):
        acquire(self)
        calls.append(self)
        if len(calls) == 1:
            path.unlink()

    monkeypatch.setattr(FileLock, "_acquire", removed_first)
    lock = FileLock(path)
    assert len(calls) == 2 and os.path.samestat(os.fstat(lock._descriptor), os.stat(path))
    lock.release()
