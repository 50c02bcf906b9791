import numpy as np
import pytest

from attnprobe.core.errors import InputError
from attnprobe.plots import removal_curve
from tests.evidences import evidence


def test_the_line_is_the_accuracy_after_each_step_and_starts_at_the_whole_model(fresh_axes):
    e = evidence(blocks_lost=(0, 3, 8), images=100)
    ax = removal_curve(e, fresh_axes())
    line = next(line for line in ax.get_lines() if line.get_label() == "without blocks")
    np.testing.assert_allclose(line.get_ydata(), [0.9, 0.9, 0.87, 0.82])
    assert list(line.get_xdata()) == [0, 1, 2, 3]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["none", "– 2", "– 3", "– 4"]


@pytest.mark.parametrize("steps", [1, 5, 8, 15, 190])
def test_every_length_keeps_its_letters_inside(steps, clipped, fresh_axes):
    e = evidence(heads_lost=tuple(range(steps)), images=400)
    ax = removal_curve(e, fresh_axes(), curve="heads")
    assert clipped(ax.figure) == []
    if steps > 8:
        ticks = dict(zip(ax.get_xticks(), (label.get_text() for label in ax.get_xticklabels()), strict=True))
        assert all(int(text) == place for place, text in ticks.items())


def test_without_such_a_curve_it_says_which_there_are():
    with pytest.raises(InputError, match="no heads .* but blocks"):
        removal_curve(evidence(), curve="heads")
