"""Commands by URL: the same numbers as from a disk, and nothing fetched but what the user typed."""

import io
import json
import subprocess
import sys
import tarfile

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

import attnprobe as ap
from attnprobe.core.errors import CheckpointError, InputError, MapsFileError, WorkError
from attnprobe.core.images import InputSpec
from attnprobe.core.spec import CaptureSpec, ReportSpec
from attnprobe.io import remote
from attnprobe.io.remote import place
from attnprobe.workflows.capture import capture_file, measure_live
from attnprobe.workflows.compare import compare
from attnprobe.workflows.report import report
from tests.model_folder import model_folder
from tests.object_store import Bucket, environment, proxy, running_server, strict

SPEC = InputSpec((32, 32))
METRICS = ("row_entropy", "similar_blocks")


@pytest.fixture(scope="module")
def server():
    with running_server() as address:
        yield address


@pytest.fixture
def bucket(server, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return Bucket(server, monkeypatch)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return model_folder(tmp_path_factory.mktemp("model") / "deep")


def picture(seed, ending="png"):
    pixels = np.random.default_rng(seed).integers(0, 256, (40 + seed % 3, 36, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG" if ending == "jpg" else "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Splits with classes, a file that is none of an image, and a hidden one."""
    root = tmp_path_factory.mktemp("data") / "photos"
    for k in range(12):
        path = root / ("train" if k > 9 else "val") / f"c{k % 3}" / f"{k}.{'jpg' if k % 2 else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(k, path.suffix[1:]))
    (root / "train" / "only_there").mkdir()
    (root / "train" / "only_there" / "x.png").write_bytes(picture(99))
    (root / "val" / "notes.txt").write_text("notes")
    (root / "val" / "c0" / ".hidden.png").write_bytes(b"no image")
    return root


def tars(photos, folder, n=2):
    """The images of val/ in tar files, each with its class."""
    files = sorted((photos / "val").rglob("[!.]*.[pj]*g"))
    for s in range(n):
        with tarfile.open(folder / f"t-{s:03d}.tar", "w") as tar:
            for path in files[s::n]:
                for name, data in ((path.name, path.read_bytes()), (f"{path.stem}.cls", path.parent.name.encode())):
                    info = tarfile.TarInfo(f"{path.parent.name}/{name}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return files


def pixels_of(source):
    batches = list(source.batches(4))
    return torch.cat([b.pixels for b in batches]), torch.cat([b.labels for b in batches])


@pytest.mark.parametrize("split", ["val", "train"])
def test_a_folder_of_images_in_a_bucket_is_that_of_a_disk(bucket, photos, split):
    bucket.upload(photos, "photos")
    here = ap.load_images(str(photos), split, spec=SPEC)
    there = ap.load_images(f"{bucket.url}/photos", split, spec=SPEC)
    assert (here.name, here.ids, here.class_names) == (there.name, there.ids, there.class_names)
    assert here.fingerprint == there.fingerprint and not there.bad
    for a, b in zip(pixels_of(here), pixels_of(there), strict=True):
        assert torch.equal(a, b)


def test_a_folder_without_the_split_or_an_image_is_refused(bucket, photos):
    bucket.upload(photos, "photos")
    for name, split, words in (
        ("photos", "test", "no split"),
        ("photos/val/c0", "train", "no split"),
        ("nothing", "val", "no folder at s3://"),
    ):
        with pytest.raises(InputError, match=words):
            ap.load_images(f"{bucket.url}/{name}", split, spec=SPEC)
    bucket.raw.pipe_file(f"{bucket.url[5:]}/mixed/a/1.png", b"x")
    bucket.raw.pipe_file(f"{bucket.url[5:]}/mixed/1.png", b"x")
    bucket.raw.pipe_file(f"{bucket.url[5:]}/texts/1.txt", b"x")
    with pytest.raises(InputError, match="both images and class folders"):
        ap.load_images(f"{bucket.url}/mixed", spec=SPEC)
    with pytest.raises(InputError, match="no image found"):
        ap.load_images(f"{bucket.url}/texts", spec=SPEC)


def test_tar_files_are_the_images_that_were_put_in(bucket, photos, tmp_path):
    files = tars(photos, tmp_path)
    bucket.upload(tmp_path, "tars")
    order = [*files[::2], *files[1::2]]
    expected = {path: pixels.clone() for path, pixels in zip(order, _one_by_one(order), strict=True)}
    for name in (f"{bucket.url}/tars/t-{{000..001}}.tar", f"{bucket.url}/tars/*.tar", f"{tmp_path}/t-*.tar"):
        source = ap.load_images(name, spec=SPEC)
        assert source.ids == tuple(f"t-{k % 2:03d}/{p.parent.name}/{p.stem}" for k, p in _numbered(order, files))
        assert source.class_names == ("c0", "c1", "c2")
        pixels, labels = pixels_of(source)
        assert labels.tolist() == [int(path.parent.name[1]) for path in order]
        assert torch.equal(pixels, torch.stack([expected[path] for path in order]))


def _numbered(order, files):
    return [(files.index(path), path) for path in order]


def _one_by_one(paths):
    """Pixels of each file by itself, from a list."""
    return pixels_of(ap.load_images(str(_list_of(paths)), spec=SPEC))[0]


def _list_of(paths):
    where = paths[0].parents[2] / "list.txt"
    where.write_text("".join(f"{path}\n" for path in paths))
    return where


def test_an_index_of_a_tar_is_made_once_and_anew_when_the_tar_changes(bucket, photos, tmp_path):
    tars(photos, tmp_path, n=1)
    bucket.upload(tmp_path, "tars")
    name = f"{bucket.url}/tars/t-000.tar"
    first = ap.load_images(name, spec=SPEC).ids
    with proxy(bucket) as counted:
        assert ap.load_images(name, spec=SPEC).ids == first
    assert not [path for method, path, _ in counted.log if method == "GET" and path.endswith(".tar")]
    tars(photos, tmp_path, n=2)
    bucket.raw.put_file(str(tmp_path / "t-001.tar"), f"{bucket.url[5:]}/tars/t-000.tar")
    assert ap.load_images(name, spec=SPEC).ids != first


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.png", b"x"), ("a.cls", b"1"), ("b.png", b"x")], "have no .cls"),
        ([("a.txt", b"x")], "no image found"),
        ([("a.png", b"x"), ("b.txt", b"x"), ("a.png", b"x")], "comes twice"),
    ],
)
def test_a_tar_that_is_not_as_it_should_be_is_refused(members, words, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(InputError, match=words):
        ap.load_images(str(tmp_path / "t.tar"), spec=SPEC)
    (tmp_path / "t.tar").write_bytes((tmp_path / "t.tar").read_bytes()[:700])
    with pytest.raises(InputError, match="cannot be read as a tar file|no image found"):
        ap.load_images(str(tmp_path / "t.tar"), spec=SPEC)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_the_network_did_not_bring_is_no_bad_image(bucket, photos, monkeypatch, workers):
    bucket.upload(photos, "photos")
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    source = ap.load_images(f"{bucket.url}/photos", spec=SPEC, bad_images="skip", workers=workers)
    with strict(bucket), pytest.raises(WorkError, match="^reading s3://.* was refused") as error:
        list(source.batches(4))
    assert "\n" not in str(error.value) and not source.bad


def test_a_checkpoint_in_a_bucket_is_the_one_on_the_disk_and_is_fetched_once(bucket, checkpoint):
    bucket.upload(checkpoint, "models/deep")
    here, there = ap.load_model(checkpoint), ap.load_model(f"{bucket.url}/models/deep")
    assert all(torch.equal(a, b) for a, b in zip(here.state_dict().values(), there.state_dict().values(), strict=True))
    with proxy(bucket) as counted:
        ap.load_model(f"{bucket.url}/models/deep")
    assert not [path for method, path, _ in counted.log if method == "GET" and path.endswith(".safetensors")]
    data = (checkpoint / "model.safetensors").read_bytes()
    bucket.raw.pipe_file(f"{bucket.url[5:]}/models/deep/model.safetensors", data[:-50])
    with pytest.raises(CheckpointError, match="truncated"):
        ap.load_model(f"{bucket.url}/models/deep")
    with pytest.raises(InputError, match="no file at s3://"):
        ap.load_model(f"{bucket.url}/models/none.safetensors")


@pytest.mark.filterwarnings("ignore:.*shown without pictures")
def test_everything_by_url_is_to_the_bit_what_it_is_on_a_disk(bucket, checkpoint, photos, tmp_path):
    bucket.upload(checkpoint, "models/deep")
    bucket.upload(photos, "photos")
    common = {"images": 8, "untrained": 4, "batch_size": 4, "img_size": 32}
    local = capture_file(CaptureSpec(checkpoint, data=str(photos), **common), out=tmp_path / "a" / "maps.h5")
    spec = CaptureSpec(f"{bucket.url}/models/deep", data=f"{bucket.url}/photos", **common)
    made = capture_file(spec, out=f"{bucket.url}/a/maps.h5")
    assert str(made) == f"{bucket.url}/a/maps.h5" and bucket.names("a") == ["a/maps.h5", "a/maps.untrained.h5"]
    with ap.open_maps(local) as here, ap.open_maps(str(made)) as there:
        for one, two in zip(here, there, strict=True):
            assert one.image_ids == two.image_ids and torch.equal(one.values, two.values)
            assert torch.equal(one.tokens, two.tokens) and torch.equal(one.pixels, two.pixels)
    assert capture_file(spec, out=f"{bucket.url}/a/maps.h5") == made, "it is found done"

    formats = ("json", "md")
    (one,), _ = report(ReportSpec((local,), tmp_path / "r", formats=formats, metrics=METRICS))
    (two,), files = report(ReportSpec((made,), f"{bucket.url}/r", formats=formats, metrics=METRICS))
    assert [str(f) for f in files] == [f"{bucket.url}/r/measurements.json", f"{bucket.url}/r/report.md"]
    assert bucket.names("r") == ["r/measurements.json", "r/report.md"]
    for name, m in one.measurements.items():
        assert np.array_equal(m.mean, two.measurements[name].mean, equal_nan=True)
    comparison, _ = compare([str(local), f"{bucket.url}/a/maps.h5"], out=place(f"{bucket.url}/c"), metrics=METRICS)
    assert len(comparison.sides) == 2 and "c/comparison.md" in bucket.names("c")


def test_live_measurements_into_a_bucket_are_those_of_a_disk(bucket, checkpoint, tmp_path):
    spec = CaptureSpec(checkpoint, data="digits", images=150, untrained=20, batch_size=16)
    (here,), _ = measure_live(spec, out=tmp_path / "live", metrics=METRICS, formats=("json",))
    (there,), files = measure_live(spec, out=f"{bucket.url}/live", metrics=METRICS, formats=("json",))
    assert [str(f) for f in files] == [f"{bucket.url}/live/measurements.json"]
    for name, m in here.measurements.items():
        assert np.array_equal(m.mean, there.measurements[name].mean, equal_nan=True)


def program(*arguments):
    command = [sys.executable, "-m", "attnprobe", *arguments]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=False, timeout=300)


@pytest.mark.slow
def test_the_program_says_in_one_line_what_a_store_refused_and_how_it_ended(bucket, checkpoint):
    capture = ("capture", str(checkpoint), "--data", "digits", "--images", "8", "--untrained", "0")
    with strict(bucket):
        refused = program(*capture, "-o", f"{bucket.url}/maps.h5")
    missing = program(*capture, "-o", f"{bucket.url}-none/maps.h5")
    for done, words in ((refused, "was refused"), (missing, "Make the bucket first")):
        assert done.returncode == 2 and words in done.stderr
        assert [line[:10] for line in done.stderr.strip().splitlines()] == ["attnprobe:"]


def test_a_package_that_is_missing_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(InputError, match=r'needs s3fs .*: pip install "attnprobe\[cloud\]"'):
        ap.open_maps("s3://bucket/maps.h5")


@pytest.mark.filterwarnings("ignore:.*read off the weights")
def test_what_a_file_says_is_never_fetched(bucket, checkpoint, tmp_path):
    """Links in HDF5, names of images in a maps file and in a recipe, and names in a checkpoint are data."""
    url = f"{bucket.url}/secret"
    made = capture_file(CaptureSpec(checkpoint, data="digits", images=8, untrained=0), out=tmp_path / "maps.h5")
    plain = tmp_path / "links.h5"
    with h5py.File(plain, "w") as file:
        file["stages"] = h5py.ExternalLink(f"{url}.h5", "/stages")
    other = tmp_path / "model"
    other.mkdir()
    (other / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    config = json.loads((checkpoint / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "architecture": f"{url}/model"}))
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"model: vit_16_digits\ndataset: {url}/photos\nepochs: 1\nwarmup_epochs: 0\n")
    with proxy(bucket) as counted:
        with pytest.raises(MapsFileError):
            ap.open_maps(plain)
        ap.load_model(other)  # by its parameters
        with pytest.raises(InputError, match="images of this machine"):
            ap.train(str(recipe), tmp_path / "run")
        ap.open_maps(made).close()
    assert counted.log == []
