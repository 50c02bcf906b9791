"""Small files in the true CIFAR format, and readers with the interface of timm's."""

import io
import pickle
import urllib.error
import warnings
from collections import Counter
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform

from attnprobe.core.errors import InputError, WorkError
from attnprobe.core.images import ImageSource, InputSpec
from attnprobe.core.registry import UnknownName
from attnprobe.data.decode import DecodedImages
from attnprobe.data.device_resident import DeviceResident
from attnprobe.data.image_files import Reading
from attnprobe.data.timm_named import timm_named

CIFAR = InputSpec((32, 32))
PER_FILE = 12
module = import_module("attnprobe.data.timm_named")  # the package has the function under this name


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """data_dir with both CIFAR sets of 12 images per file; torchvision checks their MD5, but not here."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    random = np.random.RandomState(0)

    def write(file, label_key, n_classes):
        file.parent.mkdir(exist_ok=True)
        data = random.randint(0, 256, (PER_FILE, 3 * 32 * 32), dtype=np.uint8)
        file.write_bytes(pickle.dumps({"data": data, label_key: [k % n_classes for k in range(PER_FILE)]}))

    ten, hundred = tmp_path / "cifar-10-batches-py", tmp_path / "cifar-100-python"
    for name in (*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"):
        write(ten / name, "labels", 10)
    (ten / "batches.meta").write_bytes(pickle.dumps({"label_names": [f"ten{c}" for c in range(10)]}))
    for name in ("train", "test"):
        write(hundred / name, "fine_labels", 3)
    (hundred / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"hundred{c}" for c in range(100)]}))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*align should be passed.*")  # torchvision reads old pickles
        yield tmp_path


def stored(file):
    bunch = pickle.loads(file.read_bytes())
    pixels = bunch["data"].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return [Image.fromarray(picture) for picture in pixels], bunch.get("labels") or bunch["fine_labels"]


@pytest.mark.parametrize(
    ("name", "file", "first", "n_classes"),
    [
        ("torch/cifar10", "cifar-10-batches-py/test_batch", "ten0", 10),
        ("torch/cifar100", "cifar-100-python/test", "hundred0", 100),
    ],
)
@pytest.mark.parametrize(("size", "crop_pct"), [(32, 1.0), (32, 0.9), (24, 0.9), (48, 1.0)])
def test_cifar_has_timms_pixels_whether_kept_or_decoded(cifar, collect, name, file, first, n_classes, size, crop_pct):
    spec = InputSpec((size, size), crop_pct=crop_pct)
    source = timm_named(name, spec=spec, data_dir=cifar)
    assert isinstance(source, ImageSource) and isinstance(source, DeviceResident if size >= 32 else DecodedImages)
    assert len(source.class_names) == n_classes and source.class_names[0] == first
    pictures, labels = stored(cifar / file)
    settings = {"interpolation": "bicubic", "crop_pct": spec.crop_pct, "mean": spec.mean, "std": spec.std}
    transform = create_transform((3, size, size), **settings)
    found = collect(source, 5)
    assert list(found) == [f"{name}/val/{k:07d}" for k in range(PER_FILE)]
    for (pixels, label), picture, expected in zip(found.values(), pictures, labels, strict=True):
        assert torch.equal(pixels, transform(picture)) and label == expected


def test_train_and_val_are_the_two_halves(cifar):
    assert len(timm_named("torch/cifar10", "train", spec=CIFAR, data_dir=cifar)) == 5 * PER_FILE
    assert timm_named("torch/cifar10", "test", spec=CIFAR, data_dir=cifar).ids[0] == "torch/cifar10/test/0000000"


@pytest.mark.parametrize("spec", [CIFAR, InputSpec((16, 16))])
def test_limit_is_balanced_and_ids_still_say_which_row(cifar, collect, spec):
    source = timm_named("torch/cifar10", "train", spec=spec, data_dir=cifar, limit=20)
    everything = collect(timm_named("torch/cifar10", "train", spec=spec, data_dir=cifar))
    found = collect(source)
    assert Counter(label for _pixels, label in found.values()) == dict.fromkeys(range(10), 2)
    for name, (pixels, label) in found.items():
        assert torch.equal(pixels, everything[name][0]) and label == everything[name][1]


def test_what_is_not_on_disk_says_which_options_help(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for options in ({"data_dir": tmp_path / "x"}, {}):
        with pytest.raises(InputError, match="data_dir, or fetch it: download=True") as caught:
            timm_named("torch/cifar10", spec=CIFAR, **options)
        assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_a_failed_download_is_work_that_failed(tmp_path, monkeypatch):
    def no_network(*_args, **_options):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr("timm.data.create_dataset", no_network)
    with pytest.raises(WorkError, match="no route"):
        timm_named("torch/cifar10", spec=CIFAR, data_dir=tmp_path, download=True)


@pytest.mark.parametrize(
    ("name", "packages"),
    [
        ("hfds/x", "datasets"),
        ("hfids/x", "datasets"),
        ("wds/x", "webdataset"),
        ("tfds/x", "tensorflow tensorflow-datasets"),
    ],
)
def test_a_missing_package_is_named_as_pip_calls_it(monkeypatch, name, packages):
    monkeypatch.setattr(module, "find_spec", lambda _module: None)
    with pytest.raises(InputError, match=f"pip install {packages}"):
        timm_named(name, spec=CIFAR)


def test_misspelt_sets_splits_and_bare_prefixes_are_refused(cifar):
    with pytest.raises(UnknownName, match="Did you mean 'torch/cifar10'"):
        timm_named("torch/cifar1O", spec=CIFAR)
    with pytest.raises(InputError, match="ask for train, val"):
        timm_named("torch/cifar10", "dev", spec=CIFAR, data_dir=cifar)
    with pytest.raises(UnknownName):
        timm_named("torch/", spec=CIFAR)


class RowReader:
    """The part of timm's reader of Hugging Face sets that is used."""

    class_to_idx = {"cat": 0, "ant": 1}  # noqa: RUF012

    def __init__(self, files):
        self.files = files

    def __len__(self):
        return len(self.files)

    def __getitem__(self, row):
        return io.BytesIO(self.files[row]), row % 2

    def iter_targets(self):
        return (row % 2 for row in range(len(self.files)))


class RowSet(SimpleNamespace):
    def __len__(self):
        return len(self.reader)

    def __getitem__(self, row):
        raise AssertionError("would hide a bad image behind its neighbour")


def test_a_bad_row_is_found_and_not_replaced_by_its_neighbour(tmp_path, write_image, monkeypatch, small, collect):
    files = [write_image(tmp_path / f"{k}.png", seed=k).read_bytes() for k in range(4)]
    files[1] = files[1][:50]
    monkeypatch.setattr(module, "find_spec", lambda _module: True)
    monkeypatch.setattr("timm.data.create_dataset", lambda *_, **__: RowSet(reader=RowReader(files)))
    source = timm_named("hfds/some", spec=small, reading=Reading("skip"))
    assert source.class_names == ("cat", "ant")
    with pytest.warns(UserWarning, match="0000001"):
        found = collect(source)
    assert list(found) == [f"hfds/some/val/{k:07d}" for k in (0, 2, 3)] and source.bad == ["hfds/some/val/0000001"]
    assert len(timm_named("hfds/some", spec=small, limit=2)) == 2
    with pytest.raises(InputError, match="0000001"):
        collect(timm_named("hfds/some", spec=small))


def test_val_is_asked_for_under_the_names_sets_use(monkeypatch):
    asked = []

    def only_test(_name, *, split, **_options):
        asked.append(split)
        raise ValueError(f"Unknown split {split!r}. Should be one of ['train'].")

    monkeypatch.setattr(module, "find_spec", lambda _module: True)
    monkeypatch.setattr("timm.data.create_dataset", only_test)
    with pytest.raises(InputError, match="cannot open split 'val' of 'hfds/some': Unknown split 'validation'"):
        timm_named("hfds/some", spec=CIFAR)
    assert asked == ["validation", "val", "test"]
