"""Paths by URL: their algebra, commits that overwrite nothing, and what is tried again; in fsspec's store in memory."""

import io
import pickle
from pathlib import Path

import pytest

from attnprobe.core.errors import InputError, WorkError
from attnprobe.io import fs, remote
from attnprobe.io.download import local_copy
from attnprobe.io.ranks import ALONE, Claims, shared_out
from attnprobe.io.remote import RemotePath, matching, place

fsspec = pytest.importorskip("fsspec", reason="fsspec is not installed: pip install fsspec")


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty folder of the store in memory, which is one for the whole process."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    fsspec.filesystem("memory").store.clear()
    yield place("memory://bucket/folder")
    fsspec.filesystem("memory").store.clear()


@pytest.mark.parametrize("text", ["s3://b/runs/maps.h5", Path("s3://b/runs/maps.h5"), place("s3://b/runs/maps.h5")])
def test_a_url_is_a_path_in_a_store_even_when_a_path_was_made_of_it(text):
    path = place(text)
    assert isinstance(path, RemotePath) and str(path) == f"{path}" == "s3://b/runs/maps.h5"
    assert (path.name, path.stem, path.key, path.scheme) == ("maps.h5", "maps", "b/runs/maps.h5", "s3")
    assert str(path.with_suffix(".parts") / "shards") == "s3://b/runs/maps.parts/shards"
    assert str(path.parent) == "s3://b/runs" and isinstance(path.parent, RemotePath)
    assert path == place("s3://b/runs/maps.h5") == pickle.loads(pickle.dumps(path)) and path.resolve() == path


@pytest.mark.parametrize("text", ["runs/vit", "/a/b", "~/x", "s3", "hf:facebook/dinov2", "local-dir:/a", "hf-hub:x/y"])
def test_everything_else_is_a_path_of_this_machine(text):
    assert type(place(text)) is type(Path()) and str(place(text)) == text


def test_a_file_url_is_a_path_of_this_machine(tmp_path):
    assert place(f"file://{tmp_path}/a") == tmp_path / "a"


def test_a_path_that_a_file_names_stays_one_of_this_machine():
    assert not isinstance(Path("s3://bucket/secret"), RemotePath)
    assert not isinstance(Path(place("s3://bucket/secret")), RemotePath)


def test_the_second_to_put_a_name_is_told_and_changes_nothing(folder):
    fs.write_file(folder / "a", b"first")
    with pytest.raises(FileExistsError):
        fs.write_file(folder / "a", b"second")
    assert fs.read_regular(folder / "a") == b"first"
    fs.write_file(folder / "a", b"third", overwrite=True)
    assert (folder / "a").read_bytes() == b"third" and (folder / "a").size() == 5


def test_a_folder_is_its_objects(folder):
    assert not folder.exists() and list(folder.glob("*")) == []
    fs.make_folder(folder)
    for name in ("b.h5", "a.h5", "c.txt", "deep/d.h5"):
        fs.write_file(folder / name, name.encode())
    assert folder.is_dir() and not folder.is_file()
    assert [path.name for path in folder.glob("*.h5")] == ["a.h5", "b.h5"]
    assert matching(f"{folder}/*.h5") == [folder / "a.h5", folder / "b.h5"]
    assert {name: size for name, (size, _) in folder.states().items()} == {
        "a.h5": 4, "b.h5": 4, "c.txt": 5, "deep/d.h5": 9
    }  # fmt: skip
    fs.rename(folder / "c.txt", folder / "e.txt")
    fs.unlink(folder / "a.h5")
    fs.unlink(folder / "a.h5")
    assert sorted(folder.states()) == ["b.h5", "deep/d.h5", "e.txt"]


def test_ranges_read_what_a_file_would(folder):
    data = bytes(range(256)) * 50
    fs.write_file(folder / "a", data)
    with fs.open_regular(folder / "a", len(data)) as file, io.BytesIO(data) as expected:
        for offset, whence, n in (
            (0, 0, 10),
            (5000, 0, 700),
            (-10, 2, 100),
            (-300, 1, 5),
            (len(data), 0, 5),
            (3, 0, -1),
        ):
            assert file.seek(offset, whence) == expected.seek(offset, whence)
            assert file.read(n) == expected.read(n) and file.tell() == expected.tell()
    assert (folder / "a").read_range(300, 310) == data[300:310]
    with pytest.raises(OSError, match="at most 10"):
        fs.read_regular(folder / "a", 10)
    with pytest.raises(FileNotFoundError):
        fs.read_regular(folder / "none")


def test_a_copy_is_made_once_for_each_state_and_bounded(folder, monkeypatch):
    for name, data in (("model/config.json", b"{}"), ("model/weights", b"1"), ("model/deep/other", b"2")):
        fs.write_file(folder / name, data)
    copy = local_copy(str(folder / "model"))
    assert sorted(path.name for path in copy.iterdir()) == ["config.json", "weights"] and copy.name == "model"
    monkeypatch.setattr(RemotePath, "get_file", lambda *_: pytest.fail("it is there already"))
    assert local_copy(folder / "model") == copy
    monkeypatch.undo()
    fs.write_file(folder / "model" / "weights", b"12", overwrite=True)
    with pytest.raises(InputError, match="has 4 bytes, and 3 may be downloaded"):
        local_copy(folder / "model", most=3)
    assert (local_copy(folder / "model") / "weights").read_bytes() == b"12" and copy.exists()
    assert local_copy("here/model") == Path("here/model")


class Failing:
    """A file system whose first `n` operations end with `error`."""

    def __init__(self, error, n):
        self.error, self.left, self.calls = error, n, 0

    def cat_file(self, *_):
        self.calls += 1
        self.left -= 1
        if self.left >= 0:
            raise self.error
        return b"data"


@pytest.mark.parametrize("error", [OSError(5, "lost"), TimeoutError("slow"), ConnectionResetError("gone")])
def test_what_the_network_loses_is_tried_again_and_not_for_ever(folder, monkeypatch, error):
    system = Failing(error, remote.ATTEMPTS - 1)
    monkeypatch.setattr(remote, "_file_system", lambda _: system)
    assert folder.read_bytes() == b"data" and system.calls == remote.ATTEMPTS
    system = Failing(error, 100)
    monkeypatch.setattr(remote, "_file_system", lambda _: system)
    with pytest.raises(WorkError, match=f"reading memory://bucket/folder failed {remote.ATTEMPTS} times") as line:
        folder.read_bytes()
    assert system.calls == remote.ATTEMPTS and "\n" not in str(line.value)


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (FileNotFoundError("x"), FileNotFoundError),
        (FileExistsError("x"), FileExistsError),
        (PermissionError("x"), InputError),
        (TypeError("x"), TypeError),
        (type("NoCredentialsError", (Exception,), {})("x"), InputError),
    ],
)
def test_what_another_attempt_would_not_change_is_said_at_once(folder, monkeypatch, error, raised):
    system = Failing(error, 100)
    monkeypatch.setattr(remote, "_file_system", lambda _: system)
    with pytest.raises(raised):
        folder.read_bytes()
    assert system.calls == 1


def test_claims_there_are_advice_and_what_a_dead_process_claimed_comes_last(folder):
    dead, alive, done = Claims(folder), Claims(folder), set()
    assert dead.take("000001") and not alive.take("000001")
    pieces = []
    for piece in shared_out(ALONE, 4, alive, done.__contains__):
        pieces.append(piece)
        done.add(piece)
    assert pieces == [0, 2, 3, 1]
    alive.release_all()
    assert [path.name for path in folder.glob("*.lock")] == ["000001.lock"]


def test_a_url_is_never_made_a_folder_of_this_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="name a local path"):
        fs.make_folder(Path("s3://bucket/run"))
    assert not list(tmp_path.iterdir())
