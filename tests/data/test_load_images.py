import pytest
import torch

from attnprobe.core.errors import InputError
from attnprobe.core.images import ImageSource, InputSpec
from attnprobe.core.registry import UnknownName
from attnprobe.data import DATASETS, kind_of, load_images


@pytest.fixture
def one_of_each(tmp_path, write_image):
    write_image(tmp_path / "photos/a/1.png")
    (tmp_path / "list.txt").write_text("photos/a/1.png\n")
    return ["digits", "fractals", "fractals:3", f"{tmp_path}/photos", f"{tmp_path}/list.txt"]


def test_every_source_has_what_the_protocol_and_the_report_need(one_of_each, small):
    for name in one_of_each:
        source = load_images(name, spec=small, limit=5)
        assert isinstance(source, ImageSource), name
        (batch,) = source.batches(5)
        assert len(batch.ids) == len(source) <= 5 and batch.ids == source.ids
        assert batch.pixels.shape[1:] == (3, *small.size) and batch.pixels.dtype == torch.float32
        assert batch.labels.dtype == torch.int64 and batch.labels.max() < len(source.class_names)
        assert source.bad == [] and source.fingerprint and source.spec == small


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("digits", "digits"),
        ("./digits", "folder"),
        ("fractals:12", "fractals"),
        ("torch/cifar10", "torch"),
        ("hfds/timm/mini-imagenet", "hfds"),
        ("wds/x", "wds"),
        ("/data/photos", "folder"),
        ("~/photos", "folder"),
        ("missing.txt", "list"),
        ("here", "folder"),
        ("here/files.lst", "list"),
    ],
)
def test_a_name_or_path_finds_its_kind(tmp_path, monkeypatch, name, kind):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    (tmp_path / "here/files.lst").touch()
    assert kind_of(name) == kind and kind in DATASETS


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("digit", "Did you mean 'digits'"),
        ("fractal", "Did you mean 'fractals'"),
        ("torhc/cifar10", "Did you mean 'torch/cifar10'"),
        ("cifar10", "Did you mean 'torch/cifar10'"),
        ("photo", "Did you mean 'photos'"),
        ("photo", r"Known: a folder, a list of files, digits, fractals, torch/cifar10\|.*`attnprobe list data`"),
        ("", "Known: a folder"),
    ],
)
def test_an_unknown_name_suggests_the_nearest(name, said, one_of_each, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UnknownName, match=said):
        load_images(name, spec=InputSpec())


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("digits", {"limit": 0}, "limit=0"),
        ("digits", {"bad_images": "ignore"}, "bad_images='ignore'"),
        ("fractals", {"clases": 3}, "Did you mean 'classes'"),
        ("digits", {"classes": 3}, "no option 'classes'"),
    ],
)
def test_options_that_do_not_exist_are_refused(name, options, said):
    with pytest.raises(InputError, match=said):
        load_images(name, spec=InputSpec(), **options)


def test_options_reach_the_set_they_belong_to(small):
    source = load_images("fractals", "train", spec=small, classes=4, per_class=3, seed=5)
    assert len(source) == 12 and "seed=5" in source.fingerprint
