import io
import os

import numpy as np
import pytest
import torch
from PIL import EpsImagePlugin, Image
from timm.data import create_transform

from attnprobe.core.errors import InputError
from attnprobe.core.images import ImageSource, InputSpec
from attnprobe.data import streamed
from attnprobe.data.streamed import StreamedImages


class Stream:
    def __init__(self, n, announced=None):
        self.n, self.announced, self.starts = n, announced if announced is not None else n, 0

    def __len__(self):
        return self.announced

    def picture(self, k):
        return Image.fromarray(np.random.RandomState(k).randint(0, 256, (30, 40), dtype=np.uint8))

    def __iter__(self):
        self.starts += 1
        return ((self.picture(k), k % 3) for k in range(self.n))


def test_a_stream_has_timms_pixels_in_its_own_order(small, collect):
    stream = Stream(7)
    source = StreamedImages("s", small, stream)
    assert isinstance(source, ImageSource)
    transform = create_transform(
        (3, *small.size), interpolation="bicubic", crop_pct=1.0, mean=small.mean, std=small.std
    )
    for batch_size in (1, 3, 7):
        found = collect(source, batch_size)
        assert list(found) == [f"s/{k:07d}" for k in range(7)]
        for k, (pixels, label) in enumerate(found.values()):
            assert torch.equal(pixels, transform(stream.picture(k).convert("RGB"))) and label == k % 3


def test_pixels_and_labels_reach_a_gpu_from_pinned_memory(small, monkeypatch):
    """A copy from other memory waits for all that is queued there."""
    moved = []
    monkeypatch.setattr(streamed, "on_device", lambda device, *drawn: moved.append((device, len(drawn))) or drawn)
    list(StreamedImages("s", small, Stream(3)).batches(2, device="cuda"))
    assert moved == [(torch.device("cuda"), 2)] * 2


def test_going_on_reads_nothing_twice_and_going_back_starts_again(small, collect):
    stream = Stream(9)
    source = StreamedImages("s", small, stream)
    whole = collect(StreamedImages("s", small, Stream(9)))
    parts = [collect(source, 2, order=order) for order in (range(0, 3), range(3, 5), [6, 8])]
    assert stream.starts == 1
    again = collect(source, order=range(2, 4))
    assert stream.starts == 2
    for part in (*parts, again):
        assert all(torch.equal(pixels, whole[name][0]) for name, (pixels, _label) in part.items())
    assert [name for part in parts for name in part] == [f"s/{k:07d}" for k in (0, 1, 2, 3, 4, 6, 8)]


def test_shuffling_is_refused(small, collect):
    with pytest.raises(InputError, match="cannot be shuffled"):
        collect(StreamedImages("s", small, Stream(4)), order=[1, 0])


def test_limit_means_the_first(small, collect):
    assert list(collect(StreamedImages("s", small, Stream(9), limit=2))) == ["s/0000000", "s/0000001"]


def test_missing_images_are_refused_or_recorded(small, collect):
    with pytest.raises(InputError, match="only 5 readable images where 7 were expected"):
        collect(StreamedImages("s", small, Stream(5, announced=7)))
    source = StreamedImages("s", small, Stream(5, announced=7), bad_images="skip")
    with pytest.warns(UserWarning, match="the rest is skipped"):
        assert len(collect(source)) == 5
    assert source.bad == ["s/0000005", "s/0000006"]


def test_a_stream_without_a_length_is_refused(small):
    with pytest.raises(InputError, match="how many images"):
        StreamedImages("s", small, Stream(3, announced=0))


def test_a_stream_that_holds_postscript_starts_no_ghostscript(tmp_path, monkeypatch):
    canary = tmp_path / "CANARY"
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {canary}\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n%%EOF\n"

    class Stream:
        def __len__(self):
            return 2

        def __iter__(self):
            for _ in range(2):
                yield Image.open(io.BytesIO(postscript)), 0

    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # found anew, on this PATH
    with pytest.raises(InputError, match="cannot be read"):
        list(StreamedImages("wds/x", InputSpec((8, 8)), Stream()).batches(2))
    assert EpsImagePlugin.gs_binary is None and not canary.exists()


def test_runs_may_go_back_though_none_is_shuffled(small, collect):
    source = StreamedImages("s", small, Stream(6))
    runs = [batch.ids for batch in source.batches(2, order=iter([range(3, 6), range(3)]))]
    assert [[int(name[-1]) for name in ids] for ids in runs] == [[3, 4], [5], [0, 1], [2]]
    with pytest.raises(InputError, match="cannot be shuffled"):
        list(source.batches(2, order=iter([range(2), [5, 4]])))
