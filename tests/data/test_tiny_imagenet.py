"""Small trees in Tiny-ImageNet's own layout."""

import pytest
import torch
from PIL import Image
from timm.data import create_transform

from attnprobe.core.errors import InputError
from attnprobe.core.images import ImageSource, InputSpec
from attnprobe.data import load_images
from attnprobe.data.decode import DecodedImages
from attnprobe.data.device_resident import DeviceResident
from attnprobe.data.image_files import Reading, load_files
from attnprobe.data.tiny_imagenet import list_tiny_imagenet

WNIDS = ("n02124075", "n01443537", "n04067472")  # as in the set itself, not sorted
WORDS = ("Egyptian cat", "goldfish, Carassius auratus", "reel")
NAMES = ("goldfish, Carassius auratus", "Egyptian cat", "reel")
SPEC = InputSpec((64, 64))


@pytest.fixture
def tiny(tmp_path, write_image):
    """A tree of three classes: 4 training images of each, 12 validation images, 5 test images."""
    root = tmp_path / "tiny-imagenet-200"
    for seed, wnid in enumerate(WNIDS):
        for k in range(4):
            mode = "L" if k == 3 else "RGB"  # some images of the set are grey
            write_image(root / f"train/{wnid}/images/{wnid}_{k}.JPEG", 10 * seed + k, (64, 64), mode)
        (root / f"train/{wnid}/{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t10\t63\t58\n")
    for split, n in (("val", 12), ("test", 5)):
        for k in range(n):
            write_image(root / f"{split}/images/{split}_{k}.JPEG", 100 + k, (64, 64))
    (root / "val/val_annotations.txt").write_text(
        "".join(f"val_{k}.JPEG\t{WNIDS[k % 3]}\t0\t32\t44\t62\n" for k in range(12))
    )
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    (root / "words.txt").write_text(
        "n00001740\tentity\n" + "".join(f"{a}\t{b}\n" for a, b in zip(WNIDS, WORDS, strict=True))
    )
    return root


def test_training_images_have_the_class_of_their_folder(tiny, collect):
    source = load_images(str(tiny), "train", spec=SPEC)
    assert isinstance(source, ImageSource) and isinstance(source, DeviceResident)
    assert source.name == "tiny-imagenet-200/train" and source.class_names == NAMES
    order = sorted(WNIDS)
    assert source.ids == tuple(f"train/{wnid}/images/{wnid}_{k}.JPEG" for wnid in order for k in range(4))
    assert all(label == order.index(name.split("/")[1]) for name, (_pixels, label) in collect(source).items())


def test_validation_images_have_the_class_of_the_table_and_its_order(tiny, collect):
    found = collect(load_images("folder", "val", spec=SPEC, data_dir=tiny))
    assert list(found) == [f"val/images/val_{k}.JPEG" for k in range(12)]
    assert [label for _pixels, label in found.values()] == [1, 0, 2] * 4


def test_test_images_have_no_class(tiny, collect):
    found = collect(load_images(str(tiny), "test", spec=SPEC))
    assert list(found) == [f"test/images/test_{k}.JPEG" for k in range(5)]
    assert {label for _pixels, label in found.values()} == {-1}


@pytest.mark.parametrize(("side", "crop_pct"), [(64, 1.0), (64, 0.9), (96, 0.875), (32, 1.0)])
@pytest.mark.parametrize("resident_bytes", [1 << 30, 0])
def test_pixels_are_timms_whether_kept_or_decoded(tiny, collect, side, crop_pct, resident_bytes):
    spec = InputSpec((side, side), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4), crop_pct=crop_pct)
    source = load_files(str(tiny), spec=spec, reading=Reading(resident_bytes=resident_bytes))
    assert isinstance(source, DeviceResident if resident_bytes and side >= 64 else DecodedImages)
    transform = create_transform(
        (3, side, side), interpolation="bicubic", crop_pct=crop_pct, mean=spec.mean, std=spec.std
    )
    for name, (pixels, _label) in collect(source).items():
        assert torch.equal(pixels, transform(Image.open(tiny / name).convert("RGB")))


def test_limit_takes_as_many_of_every_class_and_the_same_again(tiny, collect):
    few = load_images(str(tiny), "val", spec=SPEC, limit=6)
    assert sorted(label for _pixels, label in collect(few).values()) == [0, 0, 1, 1, 2, 2]
    assert load_images(str(tiny), "val", spec=SPEC, limit=6).ids == few.ids


def test_a_tree_whose_validation_images_were_sorted_into_classes_is_a_folder_like_others(tiny):
    for k in range(12):
        folder = tiny / "val" / WNIDS[k % 3]
        folder.mkdir(exist_ok=True)
        (tiny / f"val/images/val_{k}.JPEG").rename(folder / f"val_{k}.JPEG")
    (tiny / "val/images").rmdir()
    source = load_files(str(tiny), spec=SPEC)
    assert source.class_names == tuple(sorted(WNIDS)) and len(source) == 12
    assert {batch.labels.unique().item() for batch in load_files(str(tiny), "test", spec=SPEC).batches(5)} == {-1}


def cut(file, lines):
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:lines]))


@pytest.mark.parametrize(
    ("damage", "split", "said"),
    [
        (lambda root: (root / "words.txt").unlink(), "val", r"cannot read .*words.txt, .*: no such file"),
        (lambda root: (root / "wnids.txt").write_bytes(b"\xff\xfe"), "train", r"cannot read .*wnids.txt"),
        (lambda root: (root / "val/val_annotations.txt").unlink(), "val", r"val_annotations.txt, .*: no such file"),
        (lambda root: cut(root / "val/val_annotations.txt", 7), "val", r"names 7 images, but not 'val_10.JPEG' and 4"),
        (lambda root: cut(root / "words.txt", 2), "train", r"no line for 'n01443537'"),
        (lambda root: (root / "val/val_annotations.txt").write_text("val_0.JPEG\tn0"), "val", r"got 'val_0.JPEG\\tn0'"),
        (lambda root: (root / "train/n04067472").rename(root / "x"), "train", r"no folder .*train/n04067472/images"),
        (lambda root: (root / "wnids.txt").write_text("\n"), "train", r"no image found in split 'train'"),
        (lambda root: None, "dev", r"no split 'dev'; it has train, val and test"),
    ],
)
def test_what_is_missing_or_cut_is_named_in_one_line(tiny, damage, split, said):
    damage(tiny)
    with pytest.raises(InputError, match=said) as caught:
        list_tiny_imagenet(tiny, split)
    assert "\n" not in str(caught.value)


def test_an_image_that_is_missing_or_cut_is_a_bad_image(tiny, collect):
    file = tiny / "val/images/val_3.JPEG"
    file.write_bytes(file.read_bytes()[:-40])
    (tiny / "val/images/val_5.JPEG").unlink()
    with pytest.raises(InputError, match=r"2 of 12 images .*'val/images/val_3.JPEG': image file is truncated.*no such"):
        load_images(str(tiny), spec=SPEC)
    with pytest.warns(UserWarning, match="skipped"):
        source = load_images(str(tiny), spec=SPEC, reading=Reading("skip"))
    assert source.bad == ["val/images/val_3.JPEG", "val/images/val_5.JPEG"] and len(source) == 10
    found = collect(source)
    assert [label for _pixels, label in found.values()] == [1, 0, 2, 0, 1, 0, 2, 1, 0, 2]
    whole = Image.open(tiny / "val/images/val_4.JPEG").convert("RGB")
    transform = create_transform((3, 64, 64), interpolation="bicubic", crop_pct=1.0, mean=SPEC.mean, std=SPEC.std)
    assert torch.equal(found["val/images/val_4.JPEG"][0], transform(whole))
