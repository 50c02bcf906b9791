import multiprocessing
import os
import signal
import time
import warnings

import pytest
import torch
from PIL import Image
from timm.data import create_transform

from attnprobe.core.errors import InputError, WorkError
from attnprobe.core.images import ImageSource, InputSpec
from attnprobe.data.decode import DecodedImages

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # Python 3.12 with threads


def open_file(files, position):
    return Image.open(files[position]), position % 3


class Opener:
    def __init__(self, files):
        self.files = files

    def __call__(self, position):
        return open_file(self.files, position)


class Dies:
    def __call__(self, position):
        os.kill(os.getpid(), signal.SIGKILL)


def source_of(files, spec, **options):
    ids = [f"id{k}" for k in range(len(files))]
    described = {"ids": ids, "class_names": ("a", "b", "c"), "fingerprint": "f", "read": Opener(files)}
    return DecodedImages("some", spec, **{**described, **options})


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "CMYK", "1"])
@pytest.mark.parametrize(
    "spec",
    [
        InputSpec((32, 32)),
        InputSpec((24, 24), interpolation="bilinear", crop_pct=0.875),
        InputSpec((20, 28), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), crop_pct=0.9),
    ],
)
def test_pixels_are_timms_evaluation_transform_to_the_bit(tmp_path, write_image, spec, mode):
    endings = {"RGB": ("png", "jpg"), "L": ("png", "jpg"), "RGBA": ("png",), "CMYK": ("jpg",), "1": ("png",)}[mode]
    files = [write_image(tmp_path / f"{mode}.{ending}", size=(41, 67), mode=mode) for ending in endings]
    files += [write_image(tmp_path / f"tall{mode}.{ending}", size=(70, 30), mode=mode) for ending in endings]
    settings = {"interpolation": spec.interpolation, "crop_pct": spec.crop_pct, "mean": spec.mean, "std": spec.std}
    transform = create_transform((3, *spec.size), **settings)
    (batch,) = source_of(files, spec).batches(9)
    assert torch.equal(batch.pixels, torch.stack([transform(Image.open(file).convert("RGB")) for file in files]))


@pytest.mark.parametrize("workers", [0, 2])
def test_order_and_batch_size_change_nothing_else(tmp_path, write_image, small, collect, workers):
    files = [write_image(tmp_path / f"{k}.png", seed=k) for k in range(7)]
    source = source_of(files, small, workers=workers)
    assert isinstance(source, ImageSource) and len(source) == 7
    whole, order = collect(source, 7), [5, 0, 6, 1, 2, 4, 3]
    for batch_size in (1, 3):
        shuffled = collect(source, batch_size, order=order)
        assert list(shuffled) == [f"id{k}" for k in order]
        for name, (pixels, label) in shuffled.items():
            assert torch.equal(pixels, whole[name][0]) and label == whole[name][1]


@pytest.mark.parametrize("workers", [0, 1])
def test_reading_leaves_the_global_random_state_alone(tmp_path, write_image, small, collect, workers):
    source = source_of([write_image(tmp_path / "a.png")], small, workers=workers)
    before = torch.get_rng_state()
    collect(source)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.promise("images-bad")
@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_turns_bad_is_skipped_once_and_shifts_no_other(tmp_path, write_image, small, collect, workers):
    files = [write_image(tmp_path / f"{k}.png", seed=k) for k in range(5)]
    source = source_of(files, small, bad_images="skip", workers=workers)
    before = collect(source, 2)
    files[1].write_bytes(files[1].read_bytes()[:60])
    with pytest.warns(UserWarning, match=r"image 'id1' of some cannot be read and is skipped: .*truncated"):
        after = collect(source, 2)
    assert list(after) == ["id0", "id2", "id3", "id4"] and source.bad == ["id1"]
    for name, (pixels, label) in after.items():
        assert torch.equal(pixels, before[name][0]) and label == before[name][1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert list(collect(source, 1)) == list(after)  # a batch of nothing is not yielded
    assert source.bad == ["id1"]


def test_an_image_that_turns_bad_is_named_when_refused(tmp_path, write_image, small, collect):
    files = [write_image(tmp_path / f"{k}.png", seed=k) for k in range(3)]
    source = source_of(files, small)
    files[2].unlink()
    with pytest.raises(InputError, match=r"^image 'id2' of some cannot be read: no such file\. "):
        collect(source)


@pytest.mark.promise("resources-end")
def test_a_dead_worker_is_one_line_that_says_what_to_do(small, collect):
    source = DecodedImages("some", small, read=Dies(), ids=["a"], class_names=(), fingerprint="f", workers=1)
    with pytest.raises(WorkError, match="fewer workers") as caught:
        collect(source)
    assert "\n" not in str(caught.value)


def test_a_batch_that_is_left_early_ends_its_workers(tmp_path, write_image, small):
    files = [write_image(tmp_path / f"{k}.png", seed=k) for k in range(6)]
    batches = source_of(files, small, workers=1).batches(1)
    assert torch.isfinite(next(batches).pixels).all()
    batches.close()


@pytest.mark.parametrize("workers", [0, 2])
def test_one_loader_reads_runs_that_are_made_while_it_reads(tmp_path, write_image, small, workers):
    files = [write_image(tmp_path / f"{k}.png", seed=k) for k in range(9)]
    source, processes = source_of(files, small, workers=workers), set()
    batches = source.batches(2, order=iter([range(3), range(6, 9), range(3, 6)]))
    found = []
    for batch in batches:
        found.append(batch.ids)
        processes |= {child.pid for child in multiprocessing.active_children()}
    assert found == [("id0", "id1"), ("id2",), ("id6", "id7"), ("id8",), ("id3", "id4"), ("id5",)]
    assert len(processes) == workers, "the same workers read all of them"


@pytest.mark.promise("resources-end")
@pytest.mark.parametrize("why", ["No space left on device", "Too many open files"])
def test_shared_memory_that_is_full_is_one_line_and_not_a_wait_without_end(small, monkeypatch, why):
    def refuse(_tensor):
        raise RuntimeError(f"unable to allocate shared memory: {why}")

    monkeypatch.setattr(torch.Tensor, "share_memory_", refuse)  # in the workers, which are forks of this process
    source = source_of(range(4), small, read=lambda _: (Image.new("RGB", (40, 40)), 0), workers=1)
    with pytest.raises(WorkError, match=f"{why}.*open files may be short"):
        list(source.batches(2))


@pytest.mark.promise("resources-end")
def test_a_batch_that_gets_lost_ends_the_wait(small, monkeypatch):
    monkeypatch.setattr("attnprobe.data.decode.PATIENCE", 1.0)
    source = source_of(range(2), small, read=lambda _: time.sleep(60), workers=1)
    with pytest.raises(WorkError, match=r"timed out after 1(\.0)? seconds"):
        list(source.batches(2))
