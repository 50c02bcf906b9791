import os

import pytest

from attnprobe.core.errors import InputError
from attnprobe.data.image_files import Reading, load_files
from attnprobe.data.listing import list_lines


@pytest.fixture
def listed(tmp_path):
    def write(text, encoding="utf-8"):
        (tmp_path / "list.txt").write_bytes(text.encode(encoding))
        return tmp_path / "list.txt"

    return write


def test_paths_alone(listed, tmp_path, write_image, small, collect):
    files = [write_image(tmp_path / name) for name in ("b.png", "sub/a b.jpg")]
    outside = write_image(tmp_path.parent / f"{tmp_path.name}outside.png")
    where = listed(f"b.png\r\n\n./sub/a b.jpg\n{files[0].parent}/../{outside.name}\n")
    found = collect(load_files(str(where), spec=small))
    assert list(found)[:2] == ["b.png", "sub/a b.jpg"]
    assert {label for _pixels, label in found.values()} == {-1}
    outside.unlink()


def test_relative_paths_start_at_the_list_and_not_here(listed, tmp_path, write_image, small, monkeypatch):
    write_image(tmp_path / "a.png")
    where = listed("a.png\n")
    monkeypatch.chdir(tmp_path.parent)
    assert load_files(os.path.relpath(where), spec=small).ids == ("a.png",)


def test_numbers_are_labels_as_they_are(listed):
    listing = list_lines(listed("b.png\t3\na.png\t0 \nc.png\t-1"))
    assert (listing.ids, listing.labels) == (["b.png", "a.png", "c.png"], [3, 0, -1])
    assert listing.class_names == ("0", "1", "2", "3")


def test_names_are_numbered_in_sorted_order(listed):
    listing = list_lines(listed("b.png\tdog\na.png\tcat\nc.png\tdog\n"))
    assert listing.labels == [1, 0, 1] and listing.class_names == ("cat", "dog")


@pytest.mark.parametrize("name", ["#1.png", "é\u2028ü.png", "猫 猫.png", "~x.png", "a,b;c.png"])
def test_odd_names_are_taken_literally(listed, tmp_path, name):
    listing = list_lines(listed(f"{name}\t5\n", encoding="utf-8-sig"))
    assert listing.files == [str(tmp_path / name)] and listing.ids == [name]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the list is empty"),
        ("\n\n", "the list is empty"),
        ("a.png\t1\nb.png\n", r"expected a path, a tab and a label, like the first line, got 'b.png'"),
        ("a.png\nb.png\t1\n", r"expected a path alone, like the first line"),
        ("a.png\t1\t2\n", "expected a path, a tab and a label"),
        ("a.png\t\n", "expected a path, a tab and a label"),
        ("a.png\n./a.png\n", "2 times; expected every image once"),
        ("a.png\t99999999999\n", "out of range"),
    ],
)
def test_lines_that_do_not_fit_are_refused_in_one_line(listed, text, said):
    with pytest.raises(InputError, match=said) as caught:
        list_lines(listed(text))
    assert "\n" not in str(caught.value)


def test_other_encodings_and_missing_lists_are_refused(listed, tmp_path):
    with pytest.raises(InputError, match="not a text file in UTF-8"):
        list_lines(listed("é.png", encoding="latin-1"))
    with pytest.raises(InputError, match="No such file"):
        list_lines(tmp_path / "nowhere.txt")


def test_an_image_in_place_of_a_list_is_said_to_be_one(tmp_path, write_image):
    write_image(tmp_path / "a.png")
    with pytest.raises(InputError, match="is an image; expected a folder of images, or a text file"):
        list_lines(tmp_path / "a.png")


def test_a_listed_file_that_is_missing_is_a_bad_image(listed, tmp_path, write_image, small):
    write_image(tmp_path / "a.png")
    where = listed("a.png\nb.png\n")
    with pytest.raises(InputError, match=r"1 of 2 images cannot be read \('b.png': no such file\)"):
        load_files(str(where), spec=small)
    with pytest.warns(UserWarning, match="skipped"):
        assert load_files(str(where), spec=small, reading=Reading("skip")).bad == ["b.png"]


def test_a_list_is_not_for_training(listed, small):
    with pytest.raises(InputError, match="has no split 'train'"):
        load_files(str(listed("a.png\n")), "train", spec=small)
