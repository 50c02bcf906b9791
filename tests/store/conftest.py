"""Small files of several shards."""

import pytest
import torch

from attnprobe.core.maps import Outcome
from attnprobe.io import fs
from attnprobe.store import merge
from tests.store.capturing import shrink_shards


@pytest.fixture
def small_shards(monkeypatch):
    """Shards of 4 images (for maps of 3 layers, 2 heads, 7 tokens), so that 10 images make 3."""
    shrink_shards(monkeypatch)


@pytest.fixture
def merging_here(monkeypatch):
    """Merge without a child process, which takes 0.3 s; the tests of `merge` have the child."""
    monkeypatch.setattr(merge, "_run_child", merge._copy)


@pytest.fixture
def ten_maps(make_maps):
    """Maps of ten images, float32, with what the model said about them."""
    generator = torch.Generator().manual_seed(1)
    outcome = Outcome(torch.arange(10) % 3, torch.arange(10) % 4, torch.rand(10, generator=generator))
    return make_maps(images=10, spread=3.0, dtype=torch.float32, layers=3, outcome=outcome)


@pytest.fixture
def fault(monkeypatch):
    """`fault("write:2:ENOSPC")` makes the second write fail; `fault("")` ends it."""

    def inject(what):
        monkeypatch.setattr(fs, "matched", 0)
        monkeypatch.setenv("ATTNPROBE_FAULT", what)

    return inject
