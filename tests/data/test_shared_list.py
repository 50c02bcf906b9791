"""One process of a job lists the images, the others read its list; no file is opened for it."""

import os
import threading
from dataclasses import replace

import pytest

from attnprobe.core.errors import InputError
from attnprobe.data import folder, image_files, shared_list
from attnprobe.data.folder import list_folder
from attnprobe.data.image_files import Reading, load_files
from attnprobe.data.shared_list import Shared, listed_once, read
from attnprobe.io.lock import FileLock


@pytest.fixture
def photos(tmp_path):
    """Files that are no images, some with names that are no UTF-8."""
    root = tmp_path / "photos"
    for k in range(12):
        path = root / "ab"[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * k)
    return root


def test_the_list_that_is_read_is_the_one_that_was_made(photos, tmp_path, monkeypatch):
    odd = os.fsencode(photos) + b"/a/latin\xe9\n.png"
    for name in ("plain", "odd"):
        if name == "odd":
            open(odd, "wb").close()
        kept = tmp_path / f"{name}.list"
        made = listed_once(Shared(kept, "r"), lambda: ("photos/val", list_folder(photos, "val")))
        with monkeypatch.context() as patch:
            patch.setattr(folder, "files_under", lambda *_: pytest.fail("listed again"))
            found = listed_once(Shared(kept, "r"), lambda: pytest.fail("made again"))
        assert found[0] == made[0] == "photos/val"
        for field in ("files", "ids", "labels", "class_names"):
            assert getattr(found[1], field) == getattr(made[1], field)
        assert found[1].fingerprint() == made[1].fingerprint() == list_folder(photos, "val").fingerprint()
    assert os.fsdecode(odd) in found[1].files


def test_of_many_who_ask_at_once_one_makes_the_list(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_list, "WAIT", 0.01)
    made, found = [], []

    def make():
        made.append(1)
        return "photos/val", list_folder(photos, "val")

    def ask():
        found.append(listed_once(Shared(tmp_path / "list", "r"), make)[1].ids)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and found == [found[0]] * 6


def test_the_list_of_a_process_that_died_is_made_by_another(photos, tmp_path):
    FileLock(tmp_path / "list.lock").release()  # its file stays, and nobody holds it
    (tmp_path / ".tmp-host-1-abcd").write_bytes(b"half")
    assert len(listed_once(Shared(tmp_path / "list", "r"), lambda: ("p", list_folder(photos, "val")))[1].ids) == 12


def test_a_list_of_other_images_is_not_used_and_a_damaged_one_is_refused(photos, tmp_path):
    kept = tmp_path / "list"
    listed_once(Shared(kept, "photos val"), lambda: ("p", list_folder(photos, "val")))
    assert read(kept, "photos train") is None
    whole = kept.read_bytes()
    for damaged in (whole[:-3], whole.replace(b"a/2.png", b"a/3.png"), b"{}", b""):
        kept.write_bytes(damaged)
        with pytest.raises(InputError, match=r"list is damaged: .* Remove it"):
            read(kept, "photos val")


def test_no_file_is_opened_before_its_turn(photos, small, monkeypatch):
    monkeypatch.setattr(image_files, "check", lambda _: pytest.fail("opened"))
    monkeypatch.setattr(image_files, "one_size", lambda *_, **__: pytest.fail("opened"))
    source = load_files(str(photos), spec=small, reading=Reading(scan=False))
    assert len(source) == 12 and source.bad == []
    with pytest.raises(InputError, match=r"image 'a/0.png' of photos cannot be read: empty file"):
        next(source.batches(4))


def test_names_and_fingerprint_are_those_of_a_scanned_folder(tmp_path, write_image, small):
    root = tmp_path / "photos"
    for k in range(6):
        write_image(root / "ab"[k % 2] / f"{k}.png", seed=k)
    one, two = (load_files(str(root), spec=small, reading=Reading(scan=scan)) for scan in (True, False))
    assert (one.ids, one.fingerprint, one.class_names) == (two.ids, two.fingerprint, two.class_names)
    shared = Shared(tmp_path / "list", "")
    for limit in (5, 3):
        few = load_files(str(root), spec=small, limit=limit, reading=Reading(scan=False, shared=shared))
        whole = load_files(str(root), spec=small, limit=limit)
        assert (few.ids, few.fingerprint) == (whole.ids, whole.fingerprint)


@pytest.mark.promise("images-bad")
@pytest.mark.parametrize("workers", [0, 2])
def test_what_cannot_be_read_is_skipped_when_it_is_met(tmp_path, write_image, small, workers):
    for k in range(9):
        write_image(tmp_path / f"{k}.png", seed=k)
    for k in (0, 4, 5):
        (tmp_path / f"{k}.png").write_bytes(b"")
    source = load_files(str(tmp_path), spec=small, reading=Reading("skip", workers, scan=False))
    with pytest.warns(UserWarning, match=r"'\d.png' of .* cannot be read and is skipped: empty file"):
        found = [batch.ids for batch in source.batches(2)]
    assert source.bad == ["0.png", "4.png", "5.png"]
    assert [name for ids in found for name in ids] == [f"{k}.png" for k in (1, 2, 3, 6, 7, 8)]


def test_what_the_model_will_not_see_of_an_image_is_said_when_it_is_met(tmp_path, small):
    from PIL import Image

    for k, mode in enumerate(("RGB", "RGBA", "RGBA")):
        Image.new(mode, (24, 20), (1, 2, 3, 4)[: len(mode)]).save(tmp_path / f"{k}.png")
    source = load_files(str(tmp_path), spec=small, reading=Reading(scan=False))
    with pytest.warns(UserWarning, match=r"the first '1.png', have an alpha channel and are shown on white") as said:
        list(source.batches(1))
    assert len(said) == 1


@pytest.mark.promise("images-bad")
@pytest.mark.filterwarnings("ignore:.*they are skipped")
@pytest.mark.parametrize("limit", [None, 6])
def test_where_all_are_tried_first_one_process_tries_them(tmp_path, write_image, small, monkeypatch, limit):
    root = tmp_path / "photos"
    for k in range(12):
        write_image(root / "ab"[k % 2] / f"{k}.png", size=(20 + k, 24), seed=k)
    for name in load_files(str(root), spec=small, limit=6).ids[1:3]:
        (root / name).write_bytes(b"")
    skip = Reading("skip", resident_bytes=0)
    alone = load_files(str(root), spec=small, limit=limit, reading=skip)
    tried, real = [], image_files.check
    monkeypatch.setattr(image_files, "check", lambda file: tried.append(file) or real(file))
    shared = replace(skip, shared=Shared(tmp_path / "list", ""))
    for _process in range(3):
        found = load_files(str(root), spec=small, limit=limit, reading=shared)
        assert (found.ids, found.bad, found.fingerprint) == (alone.ids, alone.bad, alone.fingerprint)
    assert len(alone.bad) == 2 and len(tried) == (limit or 12)
    few = load_files(str(root), spec=small, limit=4, reading=shared)  # as of an untrained baseline
    assert few.ids == load_files(str(root), spec=small, limit=4, reading=skip).ids
    with pytest.raises(InputError, match=r"2 of \d+ images cannot be read .*: empty file"):
        load_files(str(root), spec=small, limit=limit, reading=replace(shared, bad_images="refuse"))


@pytest.mark.slow
def test_a_hundred_thousand_names_take_little_memory(tmp_path):
    import tracemalloc

    for k in range(100):
        (tmp_path / f"c{k}").mkdir()
        first = tmp_path / f"c{k}" / "0000000.jpg"
        first.write_bytes(b"x")
        for number in range(1, 1000):
            (tmp_path / f"c{k}" / f"{number:07d}.jpg").hardlink_to(first)
    tracemalloc.start()
    listing = list_folder(tmp_path, "val")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(listing.ids) == 100_000 and peak < 60e6
