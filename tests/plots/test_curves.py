from dataclasses import replace

import numpy as np
import pytest

from attnprobe.core.errors import InputError, ShapeError
from attnprobe.plots import precision_curve, removal_curve, similar_fraction, threshold_curve
from tests.evidences import evidence
from tests.reports.formulas import examined, layer_cosine, measurement, precision, similar_blocks


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


def of(layers, n, **settings):
    return similar_blocks(layers, range(layers - n + 1, layers + 1), settings=settings or None)


def test_a_point_per_depth_at_its_share_of_the_blocks_that_could_be_similar(clipped):
    ax = similar_fraction([of(24, 9), of(8, 0), of(16, 3)])
    x, y = ax.get_lines()[0].get_data()
    np.testing.assert_allclose(x, [8, 16, 24])
    np.testing.assert_allclose(y, [0, 3 / 15, 9 / 23])
    assert clipped(ax.figure) == [] and list(ax.get_xticks()) == [8, 16, 24]


def test_compared_with_any_block_all_of_them_could_be():
    _, y = similar_fraction([of(8, 4, compare="any")]).get_lines()[0].get_data()
    np.testing.assert_allclose(y, [0.5])


def test_bars_are_the_interval_of_the_count():
    m = of(16, 3)
    m = replace(m, summary={**m.summary, "count_ci": [1, 6]})
    bars = similar_fraction([m]).collections[0].get_segments()
    np.testing.assert_allclose(bars[0][:, 1], [1 / 15, 6 / 15])


def test_families_share_axes_and_untrained_networks_are_dotted(clipped):
    family = [
        replace(m, baselines={"untrained": of(depth, depth - 1)}) for depth, m in ((8, of(8, 1)), (12, of(12, 2)))
    ]
    ax = similar_fraction(family, label="ViT")
    similar_fraction([of(16, 1)], ax, label="DeepViT")
    assert clipped(ax.figure) == [] and list(ax.get_xticks()) == [8, 12, 16]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["ViT", "untrained", "DeepViT"]
    dotted = [line for line in ax.get_lines() if line.get_linestyle() == ":"]
    np.testing.assert_allclose(dotted[0].get_ydata(), [1, 1])


def test_counts_at_other_settings_are_not_compared():
    with pytest.raises(InputError, match="one tau and rho"):
        similar_fraction([of(8, 1), of(16, 1, tau=0.8)])
    with pytest.raises(InputError, match="got none"):
        similar_fraction([])
    with pytest.raises(ShapeError, match="similar_fraction draws"):
        similar_fraction([measurement("layer_similarity", layer_cosine(3, 0.5))])


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


def test_two_numbers_that_never_move_are_both_inside_the_axes(fresh_axes):
    still = [replace(precision(), low=np.full(6, x), high=np.full(6, x), value=x) for x in (23.0, 0.0)]
    ax = fresh_axes()
    for p in still:
        precision_curve(p, ax)
    low, high = ax.get_ylim()
    assert low < 0 and 23 < high < 30


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
