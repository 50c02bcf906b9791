from dataclasses import replace

import pytest

from attnprobe.core.errors import InputError, ShapeError
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


def test_a_result_of_measure_is_answered_by_how_one_of_it_is_drawn():
    result = examined(layers=3).measurements
    with pytest.raises(
        InputError, match=rf"plot draws one Measurement, .* such as plot\(result\['{next(iter(result))}'\]\)"
    ):
        plot(result)
    with pytest.raises(InputError, match="got ndarray; ap.measure gives some"):
        plot(result["row_entropy"].mean)
