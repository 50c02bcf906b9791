import os
import random

import numpy as np
import pytest
import torch
from PIL import Image

from attnprobe.core.errors import InputError
from attnprobe.data.folder import list_folder
from attnprobe.data.image_files import load_files


def fill(root, write_image, *paths):
    for k, path in enumerate(paths):
        write_image(root / path, seed=k)
    return root


def test_splits_with_classes(tmp_path, write_image, small, collect):
    paths = ("train/cat/a.png", "train/dog/b.png", "val/cat/c.png", "val/dog/sub/d.jpg", "val/dog/e.png")
    root = fill(tmp_path / "pets", write_image, *paths)
    train, val = load_files(str(root), "train", spec=small), load_files(str(root), "val", spec=small)
    assert train.ids == ("train/cat/a.png", "train/dog/b.png")
    assert val.class_names == ("cat", "dog") and val.name == "pets/val" and val.bad == []
    labels = {name: label for name, (_pixels, label) in collect(val).items()}
    assert labels == {"val/cat/c.png": 0, "val/dog/e.png": 1, "val/dog/sub/d.jpg": 1}
    assert list(labels) == sorted(labels)


@pytest.mark.parametrize(("asked", "there"), [("val", "validation"), ("val", "test"), ("validation", "val")])
def test_splits_have_other_names(tmp_path, write_image, asked, there):
    fill(tmp_path, write_image, "train/x/a.png", f"{there}/x/b.png")
    assert list_folder(tmp_path, asked).ids == [f"{there}/x/b.png"]


def test_val_is_not_test_if_there_are_both(tmp_path, write_image):
    fill(tmp_path, write_image, "val/x/a.png", "test/x/b.png")
    assert list_folder(tmp_path, "test").ids == ["test/x/b.png"]
    assert list_folder(tmp_path, "val").ids == ["val/x/a.png"]


def test_a_class_that_a_split_lacks_shifts_no_label(tmp_path, write_image):
    fill(tmp_path, write_image, "train/a/1.png", "train/b/1.png", "train/c/1.png", "val/a/2.png", "val/c/2.png")
    listing = list_folder(tmp_path, "val")
    assert listing.labels == [0, 2] and listing.class_names == ("a", "b", "c")


def test_class_folders_without_splits(tmp_path, write_image):
    fill(tmp_path, write_image, "b/1.png", "a/2.png", "a/10.png")
    listing = list_folder(tmp_path, "val")
    assert listing.ids == ["a/10.png", "a/2.png", "b/1.png"] and listing.labels == [0, 0, 1]


def test_a_class_may_be_called_train(tmp_path, write_image):
    fill(tmp_path, write_image, "bus/1.png", "train/2.png")
    assert list_folder(tmp_path, "val").class_names == ("bus", "train")


def test_a_flat_folder_has_no_classes(tmp_path, write_image):
    fill(tmp_path, write_image, "b.PNG", "a.jpeg")
    (tmp_path / "notes").mkdir()
    listing = list_folder(tmp_path, "val")
    assert (listing.ids, listing.labels, listing.class_names) == (["a.jpeg", "b.PNG"], [-1, -1], ())


def test_hidden_files_and_other_files_are_ignored(tmp_path, write_image):
    fill(tmp_path, write_image, "a/1.png", "a/.hidden.png", ".cache/2.png", "a/._1.png")
    (tmp_path / "a" / "readme.txt").write_text("x")
    (tmp_path / "labels.csv").write_text("x")
    assert list_folder(tmp_path, "val").ids == ["a/1.png"]


def test_odd_names_are_kept_and_can_be_stored_as_utf8(tmp_path, write_image, small, collect):
    names = ("猫/e\u0301.png", "猫/\u00e9.png", "a b/#1%20.png", "a b/line\nbreak.png", "a b/'\".png")
    fill(tmp_path, write_image, *names)
    os.rename(tmp_path / "a b/#1%20.png", os.fsencode(tmp_path) + b"/a b/latin\xe9.png")
    found = collect(load_files(str(tmp_path), spec=small))
    assert {*found} == {*names} - {"a b/#1%20.png"} | {"a b/latin\\xe9.png"}
    assert "\n".join(found).encode("utf-8")


def test_link_cycles_end_and_linked_classes_are_read(tmp_path, write_image):
    root = fill(tmp_path / "root", write_image, "a/1.png", "a/deep/2.png")
    fill(tmp_path / "elsewhere", write_image, "3.png")
    (root / "a/deep/up").symlink_to(root, target_is_directory=True)
    (root / "a/deep/self").symlink_to("self")
    (root / "a/again").symlink_to(root / "a", target_is_directory=True)
    (root / "linked").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert list_folder(root, "val").ids == ["a/1.png", "a/deep/2.png", "linked/3.png"]


def test_a_dangling_link_is_a_bad_image_and_not_an_absent_one(tmp_path, write_image, small):
    fill(tmp_path, write_image, "a/1.png")
    (tmp_path / "a/2.png").symlink_to("nowhere.png")
    with pytest.raises(InputError, match=r"'a/2.png': no such file"):
        load_files(str(tmp_path), spec=small)


def test_the_order_on_disk_has_no_influence(tmp_path, write_image, monkeypatch):
    fill(tmp_path, write_image, *(f"c{k % 3}/{k}.png" for k in range(12)))
    before, real = list_folder(tmp_path, "val"), os.listdir
    monkeypatch.setattr(os, "listdir", lambda path: random.Random(3).sample(real(path), len(real(path))))
    assert list_folder(tmp_path, "val") == before


def test_limit_takes_the_same_images_of_every_class(tmp_path, write_image, small, collect):
    fill(tmp_path, write_image, *(f"{'ab'[k % 2]}/{k}.png" for k in range(10)))
    few = load_files(str(tmp_path), spec=small, limit=4)
    assert sorted(label for _pixels, label in collect(few).values()) == [0, 0, 1, 1]
    assert load_files(str(tmp_path), spec=small, limit=4).ids == few.ids
    assert load_files(str(tmp_path), spec=small, limit=4).fingerprint == few.fingerprint


def test_the_fingerprint_changes_with_names_sizes_and_classes_but_not_with_the_place(tmp_path, write_image, small):
    def fingerprint(root, *paths):
        return load_files(str(fill(tmp_path / root, write_image, *paths)), spec=small).fingerprint

    first = fingerprint("one", "a/1.png", "a/2.png")
    assert fingerprint("two", "a/1.png", "a/2.png") == first
    assert fingerprint("three", "a/1.png", "a/3.png") != first
    (tmp_path / "one/a/1.png").write_bytes((tmp_path / "one/a/1.png").read_bytes() + b"\0")
    assert load_files(str(tmp_path / "one"), spec=small).fingerprint != first


@pytest.mark.parametrize(
    ("paths", "split", "said"),
    [
        ((), "val", "no image found"),
        (("train/a/1.png", "val/a/1.png"), "test", r"no split 'test'; it has train, val\."),
        (("train/a/1.png", "val/a/1.png"), "vall", r"no split 'vall'; it has train, val\."),
        (("a/1.png",), "train", "no folder train/"),
        (("a/1.png",), "dev", "no split 'dev'"),
        (("a/1.png", "2.png"), "val", "both images and class folders"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(tmp_path, write_image, paths, split, said):
    fill(tmp_path, write_image, *paths)
    with pytest.raises(InputError, match=said) as caught:
        list_folder(tmp_path, split)
    assert "\n" not in str(caught.value)


def test_an_empty_class_folder_is_named(tmp_path, write_image):
    fill(tmp_path, write_image, "a/1.png")
    (tmp_path / "b").mkdir()
    with pytest.raises(InputError, match=r"class folder 'b' of .* holds no image"):
        list_folder(tmp_path, "val")


def test_a_missing_folder_is_named(small):
    with pytest.raises(InputError, match=r"no folder '\./nowhere'"):
        load_files("./nowhere", spec=small)


def test_pixels_come_from_the_file_of_that_id(tmp_path, write_image, small, collect):
    fill(tmp_path, write_image, "b/1.png", "a/1.png")
    both = collect(load_files(str(tmp_path), spec=small))
    alone = collect(load_files(str(tmp_path / "b"), spec=small))
    assert torch.equal(both["b/1.png"][0], alone["1.png"][0])
    assert not torch.equal(both["a/1.png"][0], alone["1.png"][0])


@pytest.mark.parametrize("ending", ["jfif", "jpe", "avif", "jp2", "dib", "pnm", "apng", "JPEG"])
def test_every_ending_that_pillow_reads_is_read(tmp_path, write_image, small, collect, ending):
    write_image(tmp_path / "cat/0.png", size=(24, 20))
    formats = {"jfif": "JPEG", "jpe": "JPEG", "pnm": "PPM", "apng": "PNG"}
    with Image.open(tmp_path / "cat/0.png") as image:
        image.save(tmp_path / f"cat/1.{ending}", formats.get(ending))
    found = collect(load_files(str(tmp_path), spec=small))
    assert set(found) == {"cat/0.png", f"cat/1.{ending}"}
    with Image.open(tmp_path / f"cat/1.{ending}") as image:
        shares = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).double() / 255
    mean, std = (torch.tensor(numbers).double().view(3, 1, 1) for numbers in (small.mean, small.std))
    assert torch.allclose(found[f"cat/1.{ending}"][0].double(), (shares - mean) / std, atol=1e-5)


@pytest.mark.parametrize("name", ["x.jxl", "x.svg", "x.dcm", "x.npy", "x.psd", "x", "x.nef"])
def test_a_file_that_is_left_out_is_named(tmp_path, write_image, name):
    fill(tmp_path, write_image, "a/1.png")
    (tmp_path / "a" / name).write_bytes(b"x")
    ending = "." + name.partition(".")[2] if "." in name else "without ending"
    with pytest.warns(UserWarning, match=f"1 files are left out, .*: 1 {ending} .first '{name}'"):
        assert list_folder(tmp_path, "val").ids == ["a/1.png"]


def test_a_class_of_unread_files_is_refused_with_their_ending(tmp_path, write_image):
    fill(tmp_path, write_image, "a/1.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/1.jxl").write_bytes(b"x")
    with pytest.raises(InputError, match=r"class folder 'b' .* holds no image. .* Not read: 1 .jxl .first '1.jxl'"):
        list_folder(tmp_path, "val")
