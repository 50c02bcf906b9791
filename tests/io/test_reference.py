"""Which images a file may name by itself."""

from pathlib import Path

import pytest

from attnprobe.core.errors import InputError
from attnprobe.data import kind_of
from attnprobe.io.reference import MAX_CLASSES, MAX_IMAGES, UserImages, allowed


@pytest.fixture
def run(tmp_path):
    for name in ("run/photos/a", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "1.png").touch()
    return tmp_path / "run"


@pytest.mark.parametrize(
    "values",
    [
        {"data": "digits"},
        {"data": "digits", "split": "train", "data_dir": None, "images": 5},
        {"data": "fractals"},
        {"data": f"fractals:{MAX_CLASSES}:100"},
        {"data": "fractals:10:100000000", "images": MAX_IMAGES},
    ],
)
def test_a_file_names_what_needs_nothing_from_this_machine(values):
    assert allowed(values, "file", None).data == values["data"]


@pytest.mark.parametrize(
    "values",
    [
        {"data": "wds/x", "data_dir": "pipe:touch CANARY ;#"},
        {"data": "torch/cifar10"},
        {"data": "hfds/x"},
        {"data": "fractals:100000000"},
        {"data": f"fractals:{MAX_CLASSES + 1}:1"},
        {"data": "fractals:1000:1000000"},
        {"data": "/etc"},
        {"data": "~"},
        {"data": "folder", "data_dir": "/etc"},
        {"data": "folder"},
    ],
)
def test_anything_else_is_refused_with_the_options_to_name_it(values, run):
    for home in (None, run):
        with pytest.raises(InputError, match="data='") as caught:
            allowed(values, "file", home)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values", [None, [], "digits", {"data": 3}, {"data": "digits", "images": "all"}, {"date": "x"}]
)
def test_what_is_no_reference_is_refused(values):
    with pytest.raises(InputError):
        allowed(values, "file", None)


def test_a_folder_inside_the_run_is_opened_and_one_that_leads_out_is_not(run):
    inside = {"data": "folder", "data_dir": str(run / "photos")}
    for named in (inside, {"data": str(run / "photos")}):
        found = allowed(named, "file", run)
        assert (found.data, found.data_dir) == (str((run / "photos").resolve()), None)
    for outside in (run.parent / "elsewhere", run / ".." / "elsewhere"):
        with pytest.raises(InputError):
            allowed({"data": "folder", "data_dir": str(outside)}, "file", run)
    (run / "photos" / "a" / "2.png").symlink_to(run.parent / "elsewhere" / "1.png")
    with pytest.raises(InputError):
        allowed(inside, "file", run)


def test_a_list_of_images_is_no_folder(run):
    (run / "list.txt").write_text("/etc/hostname\n")
    with pytest.raises(InputError):
        allowed({"data": str(run / "list.txt")}, "file", run)


def test_the_user_names_anything():
    named = {"data": "torch/cifar10", "data_dir": "/secret", "split": "train", "images": 7}
    both = allowed(named, "file", None, UserImages("wds/x", Path("/shards")))
    assert (both.data, both.data_dir, both.split, both.images) == ("wds/x", "/shards", "train", 7)
    assert allowed(named, "file", None, UserImages("torch/svhn")).data_dir is None, "not the folder the file names"
    folder = {"data": "folder", "data_dir": "/secret"}
    assert allowed(folder, "file", None, UserImages(None, Path("/mine"))).data_dir == "/mine"
    with pytest.raises(InputError):
        allowed(named, "file", None, UserImages(None, Path("/mine")))  # the file would choose the loader


def test_a_folder_in_the_run_that_is_called_like_a_named_set_is_a_folder(run, monkeypatch):
    """As a named set, wds/x would open what its _info.json names, wherever that is."""
    (run / "wds" / "x").mkdir(parents=True)
    monkeypatch.chdir(run)
    found = allowed({"data": "wds/x", "data_dir": "."}, "file", run)
    assert (found.data, found.data_dir) == (str((run / "wds" / "x").resolve()), None)
    assert kind_of(found.data) == "folder"
