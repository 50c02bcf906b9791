from dataclasses import replace

import numpy as np

from attnprobe.plots import precision_curve
from tests.reports.formulas import precision


def test_the_band_is_the_interval_and_the_dot_is_at_the_images_there_are(fresh_axes, clipped, labels):
    p = precision()
    ax = precision_curve(p, fresh_axes(), label="one")
    precision_curve(replace(p, value=0.6), ax, label="two")
    band = {(int(x), round(float(y), 6)) for x, y in ax.collections[0].get_paths()[0].vertices}
    for size, low, high in zip(p.sizes, p.low.round(6).tolist(), p.high.round(6).tolist(), strict=True):
        assert {(size, low), (size, high)} <= band
    (dot,) = [line for line in ax.get_lines()[:2] if line.get_marker() == "o"]
    assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (40, 0.5)
    assert clipped(ax.figure) == [] and ax.get_ylabel() == "a number"
    assert [text for _, text in labels(ax.xaxis)] == ["8", "16", "32", "64", "128"]


def test_a_number_that_never_moves_has_room_around_it(fresh_axes):
    p = replace(precision(), low=np.full(6, 3.0), high=np.full(6, 3.0), value=3.0)
    assert precision_curve(p, fresh_axes()).get_ylim() == (2, 4)
    none = replace(p, value=0.0, low=0 * p.low, high=0 * p.high)
    assert precision_curve(none, fresh_axes()).get_ylim() == (-0.05, 1), "no count is negative"
