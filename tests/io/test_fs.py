import errno
import itertools
import os
import sys

import pytest

from attnprobe.core.errors import InputError, Stopped, WorkError
from attnprobe.io import fs


@pytest.fixture
def fault(monkeypatch):
    def inject(what):
        monkeypatch.setattr(fs, "matched", 0)
        monkeypatch.setenv("ATTNPROBE_FAULT", what)

    return inject


@pytest.fixture
def log(monkeypatch):
    """Names of the operations in the order in which they happen."""
    done = []

    def strikes(operation):
        done.append(operation)
        return ""

    monkeypatch.setattr(fs, "_strikes", strikes)
    return done


@pytest.mark.promise("power-lost")
def test_a_file_gets_its_name_only_after_its_bytes_and_is_acknowledged_only_after_its_name(tmp_path, log):
    fs.write_file(tmp_path / "a", b"content")
    assert log == ["create", "reserve", "write", "fsync", "link", "unlink", "fsync_folder"]
    log.clear()
    fs.write_file(tmp_path / "a", b"other", overwrite=True)
    assert log == ["create", "reserve", "write", "fsync", "rename", "fsync_folder"]
    assert (tmp_path / "a").read_bytes() == b"other"


def test_an_existing_file_is_not_replaced_unasked(tmp_path):
    fs.write_file(tmp_path / "a", b"first")
    with pytest.raises(FileExistsError):
        fs.write_file(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.promise("io-faults")
@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("kind", ["ENOSPC", "EIO"])
def test_whichever_operation_fails_the_file_is_whole_or_absent_and_nothing_else_is_left(
    tmp_path, fault, kind, overwrite, record_property
):
    failures = 0
    for n in range(1, 20):
        folder = tmp_path / str(n)
        folder.mkdir()
        fault(f"any:{n}:{kind}")
        try:
            fs.write_file(folder / "a", b"content", overwrite=overwrite)
        except OSError as error:
            failures += 1
            assert error.errno == getattr(errno, kind)
            assert set(os.listdir(folder)) <= {"a"}
            assert not (folder / "a").exists() or (folder / "a").read_bytes() == b"content"
        else:
            break
    assert failures == (6 if overwrite else 7)
    record_property("tried", failures)


@pytest.mark.promise("io-faults")
@pytest.mark.parametrize("what", ["write:1:short", "write:2:EINTR", "fsync:1:EINTR", "link:1:EINTR", "write:1:EINTR"])
def test_short_writes_and_interrupted_calls_are_carried_on(tmp_path, fault, what):
    fault(what)
    fs.write_file(tmp_path / "a", bytes(range(256)))
    assert (tmp_path / "a").read_bytes() == bytes(range(256))


@pytest.mark.promise("io-faults")
def test_a_failed_fsync_is_not_tried_again(tmp_path, monkeypatch):
    calls = []

    def broken(descriptor):
        calls.append(descriptor)
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="broken"):
        fs.write_file(tmp_path / "a", b"content")
    assert len(calls) == 1 and os.listdir(tmp_path) == []


@pytest.mark.parametrize("reason", [errno.EPERM, errno.EOPNOTSUPP])
def test_without_hard_links_a_file_still_gets_its_name_and_still_replaces_nothing(tmp_path, monkeypatch, reason):
    def no_link(source, name):
        raise OSError(reason, os.strerror(reason))

    monkeypatch.setattr(os, "link", no_link)
    fs.write_file(tmp_path / "a", b"first")
    assert os.listdir(tmp_path) == ["a"]
    with pytest.raises(FileExistsError):
        fs.write_file(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"


@pytest.mark.promise("power-lost")
def test_a_folder_is_named_only_after_every_file_in_it_is_durable(tmp_path, log):
    (tmp_path / "new" / "inner").mkdir(parents=True)
    for name in ("a", "b", "inner/c"):
        (tmp_path / "new" / name).write_bytes(b"x")
    fs.commit_folder(tmp_path / "new", tmp_path / "final")
    assert sorted(log[:-3]) == ["fsync"] * 3 + ["fsync_folder"] and log[-3:] == [
        "fsync_folder",
        "rename",
        "fsync_folder",
    ]
    assert (tmp_path / "final" / "inner" / "c").read_bytes() == b"x" and not (tmp_path / "new").exists()


def test_a_folder_does_not_replace_one_that_has_files(tmp_path):
    for name in ("new", "final"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(name)
    with pytest.raises(OSError, match="not empty"):
        fs.commit_folder(tmp_path / "new", tmp_path / "final")
    assert (tmp_path / "final" / "a").read_text() == "final"


@pytest.mark.parametrize(("code", "says"), [(errno.ENOSPC, "no space left on the disk while"), (errno.EIO, "failed:")])
def test_trouble_with_the_disk_is_one_line_that_says_what_to_do(code, says):
    with pytest.raises(WorkError, match=says) as caught, fs.as_work_error("writing maps"):
        raise OSError(code, os.strerror(code), "maps.h5")
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value) and "run the same command again" in str(caught.value)


def stops_at(n):
    """A trace that raises Stopped at the n-th line or return of `fs`, or of what it calls, as a signal may."""
    seen = []

    def trace(frame, event, argument):
        del argument  # what a function returns goes with it, as where a signal strikes
        seen.append(event)
        if len(seen) == n:
            raise Stopped("stopped")
        return trace

    return trace


@pytest.mark.promise("stop-requested")
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_stop_at_any_moment_of_opening_a_file_is_that_stop_and_no_error(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    before = sys.gettrace()
    for n in itertools.count(1):
        sys.settrace(stops_at(n))
        try:
            file = fs.open_regular(tmp_path / "a")
        except Stopped:
            continue
        finally:
            sys.settrace(before)
        break
    assert n > 10 and file.read() == b"content"
    file.close()


@pytest.mark.parametrize("name", ["report.h5", "page.HTML", "there"])
def test_a_folder_is_not_named_as_a_file_is(tmp_path, name):
    (tmp_path / "there").touch()
    with pytest.raises(InputError, match=f"{name} names a file, and several are written: name a folder, such as"):
        fs.check_folder(tmp_path / name)
    (tmp_path / "old.h5").mkdir()
    for folder in ("old.h5", "new", "v1.2"):
        fs.check_folder(tmp_path / folder)
