import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from attnprobe.core.errors import InputError, InUse
from attnprobe.io.lock import FileLock

HOLD = "import sys, pathlib; from attnprobe.io.lock import FileLock; lock = FileLock(pathlib.Path(sys.argv[1])); "


def holder(path):
    code = HOLD + "print('held', flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.promise("two-starts")
def test_a_second_process_is_told_who_holds_the_lock(tmp_path):
    with holder(tmp_path / "run.lock") as process:
        with pytest.raises(InUse, match=f"in use by pid {process.pid} on ") as caught:
            FileLock(tmp_path / "run.lock")
        assert caught.value.exit_code == 75
        process.stdin.close()


@pytest.mark.promise("two-starts")
def test_the_lock_of_a_killed_process_is_free(tmp_path):
    with holder(tmp_path / "run.lock") as process:
        process.kill()
    lock = FileLock(tmp_path / "run.lock")  # raises InUse if it is held
    assert lock.path == tmp_path / "run.lock"
    lock.release()


@pytest.mark.promise("two-starts")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12 on fork beside threads
def test_of_fifty_double_starts_one_holds_the_lock_each_time(tmp_path, record_property):
    def start(path, ends):
        child = os.fork()
        if child:
            return child
        try:
            os.close(ends[1])
            FileLock(path)
            os.read(ends[0], 1)  # until the other has tried, and this end closes
            os._exit(0)
        except InUse as error:
            os._exit(error.exit_code)
        finally:
            os._exit(1)

    for n in range(50):
        ends = os.pipe()
        both, codes = {start(tmp_path / f"{n}.lock", ends) for _ in range(2)}, []
        deadline = time.monotonic() + 60  # of two that both hold it neither ends
        while both and time.monotonic() < deadline:
            for child in list(both):
                ended, status = os.waitpid(child, os.WNOHANG)
                if ended:
                    both.remove(child)
                    codes.append(os.waitstatus_to_exitcode(status))
                    os.close(ends[1]) if len(codes) == 1 else None
            time.sleep(0.001)
        os.close(ends[0])
        assert codes == [75, 0], n
    record_property("tried", 50)


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


def test_a_link_is_refused_and_its_target_stays_as_it_is(tmp_path):
    target = tmp_path / "thesis.tex"
    for content in (b"years of work", b"", b"pid 1 on a"):
        target.write_bytes(content)
        path = tmp_path / "run.lock"
        path.symlink_to(target)
        with pytest.raises(InputError, match=r"run\.lock must be a file .* remove it"):
            FileLock(path)
        path.unlink()
        assert target.read_bytes() == content
    (tmp_path / "run.lock").symlink_to(tmp_path / "not-there")
    with pytest.raises(InputError, match="remove it"):
        FileLock(tmp_path / "run.lock")
    assert not (tmp_path / "not-there").exists()


@pytest.mark.parametrize("job", ["", "a"])
@pytest.mark.parametrize("kind", ["pipe", "socket", "folder"])
def test_what_is_no_file_is_refused_without_waiting(tmp_path, monkeypatch, kind, job):
    monkeypatch.chdir(tmp_path)  # the name of a socket may have 107 bytes
    path = Path("run.lock")
    with socket.socket(socket.AF_UNIX) as unix:
        {"pipe": os.mkfifo, "socket": lambda p: unix.bind(str(p)), "folder": os.mkdir}[kind](path)
        with pytest.raises(InputError, match="remove it"):
            FileLock(path, job)
    assert os.listdir() == ["run.lock"]


def test_a_file_of_the_user_keeps_its_content(tmp_path):
    other = tmp_path / "thesis.tex"
    other.write_text("years of work")
    os.link(other, tmp_path / "run.lock")
    with pytest.raises(InputError, match="remove it"):
        FileLock(tmp_path / "run.lock")
    assert other.read_text() == "years of work"


def test_the_last_holder_leaves_nothing_but_room_for_the_next(tmp_path):
    path = tmp_path / "run.lock"
    path.write_text(f"pid 1 on {'a' * 400}")
    FileLock(path, "job").release()
    assert path.read_text().startswith(f"pid {os.getpid()} on ") and path.read_text().endswith(" job job\n")


def test_a_stop_in_the_middle_of_letting_go_does_not_make_it_fail_when_asked_again(tmp_path, monkeypatch):
    lock, close = FileLock(tmp_path / "run.lock"), os.close

    def stopped(descriptor):
        close(descriptor)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "close", stopped)
        lock.release()
    lock.release()
    FileLock(tmp_path / "run.lock").release()
