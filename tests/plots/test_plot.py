from dataclasses import replace

import pytest

from attnprobe.core.errors import ShapeError
from attnprobe.core.figures import FIGURES
from attnprobe.metrics import DEFAULT
from attnprobe.plots import plot
from tests.reports.formulas import examined


@pytest.mark.parametrize("metric", DEFAULT)
def test_every_default_metric_has_a_figure(metric, clipped):
    ax = plot(examined(layers=6, heads=4).measurements[metric])
    assert clipped(ax.figure) == []


def test_kinds_of_axes_belong_to_one_plot_each():
    every = [axes for kind in FIGURES.values() for axes in kind.axes]
    assert len(every) == len(set(every))


def test_unknown_axes_are_refused_with_those_that_can_be_drawn():
    m = replace(examined(layers=3).measurements["row_entropy"], axes=("moon", "head"))
    with pytest.raises(ShapeError, match=r"no plot draws axes \(moon, head\) of 'row_entropy'; there are plots for"):
        plot(m)
