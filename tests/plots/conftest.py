"""What every figure must keep: letters inside, and no trace left in matplotlib."""

import matplotlib
import numpy as np
import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure

from tests.plots.letters import watch_letters


@pytest.fixture(autouse=True)
def closed_figures():
    """Figures opened by a test are closed, whatever it does."""
    yield
    pyplot.close("all")


@pytest.fixture
def fresh_axes():
    """Axes on a figure of a given size that pyplot does not know of."""
    return lambda width=4.8, height=4.0: Figure(figsize=(width, height), layout="constrained").add_subplot()


@pytest.fixture
def clipped(monkeypatch):
    """The letters of a figure that stick out of it, of all that are really drawn."""
    return watch_letters(monkeypatch)


@pytest.fixture
def labels():
    """The tick labels of an axis that fall inside its view."""

    def read(axis):
        low, high = sorted(axis.get_view_interval())
        shown = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
        return [(tick.get_loc(), tick.label1.get_text()) for tick in shown]

    return read


@pytest.fixture
def global_state():
    """Everything of matplotlib that a plot could change for others."""
    return lambda: (dict(matplotlib.rcParams), pyplot.get_fignums(), np.geterr())


SIZES = [(1, 1), (4, 3), (16, 6), (32, 12), (48, 24)]


def pytest_generate_tests(metafunc):
    if {"layers", "heads"} <= set(metafunc.fixturenames):
        metafunc.parametrize("layers, heads", SIZES, ids=[f"{n}x{h}" for n, h in SIZES])
