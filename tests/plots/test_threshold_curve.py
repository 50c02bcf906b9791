from dataclasses import replace

import numpy as np
import pytest

from attnprobe.core.errors import ShapeError
from attnprobe.plots import threshold_curve
from tests.reports.formulas import examined, measurement, similar_blocks


def test_every_size_keeps_its_letters_inside_and_the_axis_reaches_all_blocks(layers, heads, clipped):
    e = examined(layers=layers, heads=heads, similar=(2,) if layers > 1 else ())
    ax = threshold_curve(e.measurements["similar_blocks"], label="a name of twenty-four chr")
    assert clipped(ax.figure) == []
    low, high = ax.get_ylim()
    assert low < 0 and high >= layers


def test_the_line_is_the_count_at_every_threshold():
    m = similar_blocks(8, similar=(4, 6, 7))
    drawn = threshold_curve(m, label="run").get_lines()[0]
    slow = [sum(ratio > 0.9 for ratio in m.mean[i]) for i in range(len(m.coords["threshold"]))]
    np.testing.assert_array_equal(drawn.get_ydata(), slow)
    np.testing.assert_array_equal(drawn.get_xdata(), m.coords["threshold"])


def test_one_image_has_no_band():
    assert not threshold_curve(similar_blocks(4, similar=(3,), images=1)).collections
    assert threshold_curve(similar_blocks(4, similar=(3,))).collections


def test_a_metric_without_a_count_is_refused():
    m = replace(similar_blocks(4, similar=()), summary={})
    with pytest.raises(ShapeError, match="summary of similar_blocks"):
        threshold_curve(m)
    with pytest.raises(ShapeError, match="threshold_curve draws"):
        threshold_curve(measurement("row_entropy", np.ones((2, 2))))
