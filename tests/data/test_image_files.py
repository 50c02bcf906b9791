"""Corrupt images of every kind and format, among good ones."""

import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.data.image_files import Reading, load_files

DAMAGE = {
    "truncated": lambda whole: whole[: len(whole) // 2],
    "empty": lambda whole: b"",
    "text": lambda whole: b"<html>404</html>",
    "header only": lambda whole: whole[:16],
    "zeros": lambda whole: bytes(len(whole)),
}


def folder_with_one_bad(root, write_image, ending, kind):
    for k in range(4):
        write_image(root / f"a/{k}.{ending}", seed=k)
        write_image(root / f"b/{k}.{ending}", seed=10 + k)
    bad = root / f"a/2.{ending}"
    bad.write_bytes(DAMAGE[kind](bad.read_bytes()))
    return str(root)


@pytest.mark.promise("images-bad")
@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "gif", "tif"])
@pytest.mark.parametrize("kind", DAMAGE)
def test_bad_images_are_refused_by_name_or_skipped_and_no_id_shifts(
    tmp_path, write_image, small, collect, kind, ending
):
    root = folder_with_one_bad(tmp_path, write_image, ending, kind)
    with pytest.raises(InputError, match=rf"1 of 8 images cannot be read \('a/2.{ending}': .+\)") as caught:
        load_files(root, spec=small)
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith("Repair or remove them, or skip such images with bad_images='skip'.")

    with pytest.warns(UserWarning, match="1 of 8 images cannot be read .* they are skipped"):
        source = load_files(root, spec=small, reading=Reading("skip"))
    assert source.bad == [f"a/2.{ending}"] and len(source) == 7
    found = collect(source)
    assert (
        tuple(found) == source.ids == tuple(f"{c}/{k}.{ending}" for c in "ab" for k in range(4) if (c, k) != ("a", 2))
    )
    for folder, label in (("a", 0), ("b", 1)):  # each image is still the one its id names
        write_image(tmp_path / "other" / folder / f"x.{ending}", seed=3 + 10 * label)
        (alone,) = collect(load_files(str(tmp_path / "other" / folder), spec=small)).values()
        assert torch.equal(found[f"{folder}/3.{ending}"][0], alone[0]) and found[f"{folder}/3.{ending}"][1] == label


@pytest.mark.promise("images-bad")
def test_a_bad_image_moves_no_other_in_or_out_of_a_subset(tmp_path, write_image, small):
    for k in range(12):
        write_image(tmp_path / f"{'ab'[k % 2]}/{k}.png", seed=k)
    before = load_files(str(tmp_path), spec=small, limit=6)
    (tmp_path / before.ids[2]).write_bytes(b"")
    with pytest.warns(UserWarning, match="1 of 6"):
        after = load_files(str(tmp_path), spec=small, limit=6, reading=Reading("skip"))
    assert after.ids == before.ids[:2] + before.ids[3:] and after.bad == [before.ids[2]]
    assert after.fingerprint != before.fingerprint


def test_if_all_are_bad_skipping_does_not_help(tmp_path, small):
    (tmp_path / "a.png").touch()
    with pytest.raises(InputError, match="1 of 1 images cannot be read"):
        load_files(str(tmp_path), spec=small, reading=Reading("skip"))


def test_images_are_named_after_their_folder_and_after_its_split_only_where_it_has_splits(tmp_path, write_image, small):
    write_image(tmp_path / "flat" / "a.png")
    write_image(tmp_path / "split" / "val" / "cat" / "a.png")
    names = [load_files(str(tmp_path / folder), spec=small).name for folder in ("flat", "split")]
    assert names == ["flat", "split/val"]
