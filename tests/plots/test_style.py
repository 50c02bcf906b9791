from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from attnprobe.metrics import measure
from attnprobe.plots import depth_curve
from attnprobe.plots.style import (
    COLOURS,
    GREY,
    colour_bar,
    colours,
    legend,
    number_from_one,
    shared_limits,
    untrained_line,
)
from tests.reports.formulas import layer_cosine, measurement


@given(n=st.integers(1, 500), most=st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_numbers_start_at_one_sit_on_their_positions_and_are_few(n, most):
    axis = Figure().add_subplot().xaxis
    number_from_one(axis, n, most)
    positions = axis.get_ticklocs()
    texts = [label.get_text() for label in axis.get_ticklabels()]
    assert texts[0] == "1"
    assert [int(text) - 1 for text in texts] == list(positions)
    assert max(positions) < n
    assert len(texts) <= max(most, 9)


def cosine(values, **fields):
    return replace(measurement("layer_similarity_centred", values, settings={"center": "mean"}), **fields)


def test_a_bounded_metric_keeps_its_whole_range_whatever_the_data():
    m = measurement("layer_similarity", layer_cosine(5, 0.9))
    assert shared_limits([m]) == (0.0, 1.0)


def test_open_ranges_span_all_runs():
    few, many = (measurement("effective_rank", np.full((2, 2), value)) for value in (2.0, 7.0))
    assert shared_limits([few, many]) == (1.0, 7.0)


@pytest.mark.parametrize(("smallest", "low"), [(0.3, 0.0), (-0.05, 0.0), (-0.2, -1.0)])
def test_a_signed_range_is_shown_only_if_something_is_clearly_negative(smallest, low):
    assert shared_limits([cosine([[1.0, smallest], [smallest, 1.0]])]) == (low, 1.0)


def test_limits_exist_where_no_value_does():
    low, high = shared_limits([measurement("effective_rank", np.full((2, 2), np.nan))])
    assert low < high


def test_zero_is_white_where_both_signs_occur():
    scale = colours((-0.4, 1.0))
    assert (scale.norm.vmin, scale.norm.vmax) == (-1.0, 1.0)
    assert min(scale.cmap(scale.norm(0.0))[:3]) > 0.95
    assert scale.cmap(np.nan) != scale.cmap(scale.norm(0.0))


@pytest.mark.parametrize(("largest", "arrow"), [(1.0000002, "neither"), (1.01, "max")])
def test_a_colour_bar_has_an_arrow_where_values_leave_it_but_not_for_rounding(largest, arrow):
    ax = Figure().add_subplot()
    colour_bar(ax, colours((0.0, 1.0)), "cosine", np.array([0.0, largest, np.nan]))
    assert ax.figure.axes[1]._colorbar.extend == arrow


def luminance(colour):
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return linear @ [0.2126, 0.7152, 0.0722]


@pytest.mark.parametrize("page", ["#ffffff", "#1a1f25"])
def test_lines_can_be_seen_on_a_light_and_on_a_dark_page(page):
    for colour in COLOURS:
        dark, light = sorted((luminance(colour), luminance(page)))
        assert (light + 0.05) / (dark + 0.05) > 2.0, colour


def test_an_untrained_network_that_lies_on_the_line_of_the_trained_one_is_seen(make_maps):
    m = measure([make_maps(images=3, layers=4)], ["row_entropy"], bootstrap=0)["row_entropy"]
    m = replace(m, baselines={"untrained": replace(m, baselines={})})
    ax = depth_curve(m, Figure().add_subplot())
    (untrained,) = (line for line in ax.lines if line.get_label() == "untrained")
    assert untrained.get_marker() == "s" and untrained.get_markerfacecolor() == "none"
    others = [line.get_markersize() for line in ax.lines if line.get_marker() == "o"]
    assert untrained.get_markersize() > max(others, default=0)


def test_the_legend_names_untrained_networks_of_several_runs_in_the_colour_of_none():
    ax = Figure().add_subplot()
    for name, colour in (("a", "C0"), ("b", "C1")):
        ax.plot([0, 1], [0, 1], label=name, color=colour)
        untrained_line(ax, [0, 1], [1, 0], colour)
    legend(ax)
    named = dict(zip((t.get_text() for t in ax.get_legend().get_texts()), ax.get_legend().get_lines(), strict=True))
    assert {name: line.get_color() for name, line in named.items()} == {"a": "C0", "untrained": GREY, "b": "C1"}
    assert named["untrained"].get_linestyle() == ":"
