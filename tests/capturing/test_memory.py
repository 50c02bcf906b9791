"""Running out of memory costs a smaller batch, and never the result."""

import gc

import pytest
import torch
from torch import Tensor, nn

from attnprobe.capturing import Recording, capture, stream
from attnprobe.core.errors import InputError, WorkError
from attnprobe.core.memory import available
from attnprobe.models import build_model


class Small(nn.Module):
    """A model on a machine that holds `most` images."""

    def __init__(self, most, error=None):
        super().__init__()
        self.model, self.most = build_model("vit_16_digits", depth=2, embed_dim=24, seed=0), most
        self.error = error or RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        self.sizes = []

    def forward(self, pixels):
        self.sizes.append(len(pixels))
        out = self.model(pixels)
        if len(pixels) > self.most:
            raise self.error
        return out


PIXELS = torch.randn(13, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("error", [None, torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_the_batch_halves_and_the_maps_are_those_of_any_batch(error):
    whole = torch.cat([m.values for m in capture(Small(13), PIXELS, batch_size=13)])
    model = Small(3, error)
    capturing = capture(model, PIXELS, batch_size=13)
    with pytest.warns(UserWarning, match="out of memory with (13 images at once; going on with 6|6 .* 3)"):
        chunks = list(capturing)
    ids = [i for m in chunks for i in m.image_ids]
    assert ids == [str(i) for i in range(13)] and capturing.batch_size == 3
    torch.testing.assert_close(torch.cat([m.values for m in chunks]), whole, rtol=0, atol=1e-6)
    assert max(model.sizes[-5:]) == 3


def test_one_image_too_many_is_one_line():
    with pytest.raises(WorkError, match="out of memory with one image; keep fewer layers"):
        list(capture(Small(0), PIXELS))


def test_where_others_run_the_same_passes_the_batch_stays_and_the_error_is_one_line():
    model = Small(3)
    capturing = stream.Capture(Recording(model), PIXELS, 13, alone=False)
    with pytest.raises(WorkError, match="out of memory with 13 images at once; start again"):
        list(capturing)
    assert capturing.batch_size == 13


def test_other_errors_are_not_mistaken_for_it():
    with pytest.raises(InputError, match="cannot run on pixels .*: shapes do not match"):
        list(capture(Small(0, RuntimeError("shapes do not match")), PIXELS))


def test_large_maps_come_in_small_batches(monkeypatch):
    model = Small(13)
    bytes_per_image = capture(model, PIXELS).certificate.image_bytes
    assert bytes_per_image == 4 * 2 * 6 * 17 * 17
    monkeypatch.setattr(stream, "BATCH_BYTES", 2 * bytes_per_image + 1)
    assert [m.n_images for m in capture(model, PIXELS)] == [2] * 6 + [1]


def test_what_a_pass_left_is_free_at_once_and_not_when_the_garbage_collector_comes():
    model = build_model("vit_16_digits", depth=2, embed_dim=24, seed=0)
    gc.collect()
    gc.disable()
    try:
        before = {id(x) for x in gc.get_objects() if type(x) is Tensor}
        list(capture(model, PIXELS, tokens=True, values=True))
        assert not [x.shape for x in gc.get_objects() if type(x) is Tensor and id(x) not in before]
    finally:
        gc.enable()


def test_a_device_that_tells_how_much_memory_is_free_decides_on_the_batch(monkeypatch):
    capturing = capture(Small(13), PIXELS, batch_size=12)
    per_image = capturing.certificate.image_bytes
    for free, images in ((48, 12), (47, 8), (32, 8), (31, 4), (7, 1), (0, 1)):
        monkeypatch.setattr(stream, "available", lambda _device, free=free: free * per_image)
        assert capturing.fitting == images


def test_memory_of_the_allocators_own_reserve_counts_as_free(monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _device: (100, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _device: 70)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _device: 30)
    assert available(torch.device("cuda")) == 140 and available(torch.device("cpu")) is None
