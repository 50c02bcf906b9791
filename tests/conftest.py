"""Fixtures every test may use: small attention maps whose numbers are known."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: tiny models on many threads only wait for each other

import numpy as np
import pytest
import torch

from attnprobe.core.maps import AttentionMaps, TokenGrid

LONGEST = ("test_notebooks.py", "test_examples.py", "test_parity.py")
"""Begun first, so that of several processes none is left alone with them at the end."""


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def gpu():
    """The device of tests marked gpu: "cuda", or the one that ATTNPROBE_TEST_DEVICE names, such as "cpu"."""
    name = os.environ.get("ATTNPROBE_TEST_DEVICE", "cuda")
    if name.startswith("cuda") and not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    return torch.device(name)


@pytest.fixture
def make_maps():
    """Build softmax maps of any size from a seed, float64 unless asked otherwise."""

    def make(images=2, layers=3, heads=2, rows=2, cols=3, prefix=("cls",), seed=0, spread=1.0, **fields):
        grid = TokenGrid(rows, cols, prefix, patch=(4, 4))
        generator = torch.Generator().manual_seed(seed)
        shape = (images, layers, heads, grid.n_tokens, grid.n_tokens)
        values = (spread * torch.randn(shape, generator=generator, dtype=torch.float64)).softmax(-1)
        values = values.to(fields.pop("dtype", torch.float64))
        ids = tuple(f"image{i}" for i in range(images))
        return AttentionMaps(values, ids, grid, **fields)

    return make


@pytest.fixture
def soft():
    """Softmax maps [image, layer, head, query, key] of any shape from a seed, float64."""

    def make(*shape, seed=0, spread=2.0):
        noise = np.random.default_rng(seed).normal(size=shape)
        return torch.from_numpy(spread * noise).softmax(-1)

    return make


@pytest.fixture
def signed():
    """Maps of any shape with entries of both signs, as after heads are mixed and normalised."""

    def make(*shape, seed=0):
        return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))

    return make


@pytest.fixture
def call_command(capsys, monkeypatch, tmp_path):
    """Call a command in this process, in a folder of its own: (exit code, stdout, stderr)."""
    from attnprobe.cli import app as cli

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)

    def call(*arguments):
        code = 0
        try:
            cli.main(list(arguments))
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return call
