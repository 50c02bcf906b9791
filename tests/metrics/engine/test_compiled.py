"""Loops compiled by numba: used where they can be, and never left out because of a stop."""

import contextlib

import pytest

from attnprobe.core import errors
from attnprobe.core.errors import Stopped, stop_now
from attnprobe.metrics.engine import compiled

pytest.importorskip("numba")


@pytest.fixture
def broken(monkeypatch):
    """numba that cannot be imported."""

    def fails(_name):
        raise ImportError("a library in pieces")

    monkeypatch.setattr(compiled, "import_module", fails)
    monkeypatch.setattr(errors, "_stop_asked", False)


def test_an_installation_that_does_not_work_is_said_and_done_without(broken):
    with pytest.warns(UserWarning, match="cannot be used.*a library in pieces"):
        assert compiled._module.__wrapped__() is None


@pytest.mark.promise("stop-requested")
def test_a_stop_that_comes_out_of_the_import_as_an_error_is_a_stop(broken):
    """Done without, the loops would leave numbers that differ by rounding from those of an undisturbed run."""
    with contextlib.suppress(Stopped):
        stop_now()
    with pytest.raises(Stopped):
        compiled._module.__wrapped__()
