from dataclasses import replace

import matplotlib
import numpy as np
import pytest
from scipy import stats

from attnprobe.core.errors import ShapeError
from attnprobe.metrics import METRICS
from attnprobe.plots import depth_curve, head_scatter
from attnprobe.plots.depth import by_depth, by_depth_of_runs
from attnprobe.stats.over_runs import Runs, estimate, scatter_of_mean
from attnprobe.workflows.figure import PRINT
from tests.reports.formulas import examined, layer_cosine, measurement, similar_blocks


def line(ax, label):
    return next(line for line in ax.get_lines() if line.get_label() == label)


def test_every_depth_curve_has_blocks_from_one_and_all_letters_inside(layers, heads, clipped, labels):
    e = examined(layers=layers, heads=heads, similar=range(layers // 2 + 1, layers + 1))
    ax = depth_curve(e.measurements["similar_blocks"], label="a name of twenty-four chr")
    depth_curve(e.measurements["similar_blocks"], ax, label="another one, just as long")
    assert clipped(ax.figure) == []
    assert labels(ax.xaxis)[0] == (0, "1")
    assert all(int(text) == at + 1 for at, text in labels(ax.xaxis))


def test_the_ratio_is_that_at_tau_without_the_block_that_has_none_before():
    m = similar_blocks(6, similar=(5, 6), settings={"tau": 0.7})
    ratio, low, high = by_depth(m)
    at = m.coords["threshold"].index(0.7)
    np.testing.assert_array_equal(ratio[1:], m.mean[at, 1:])
    np.testing.assert_array_equal(low[1:], m.ci[0, at, 1:])
    np.testing.assert_array_equal(high[1:], m.ci[1, at, 1:])
    assert np.isnan([ratio[0], low[0], high[0]]).all()


@pytest.mark.parametrize(("compare", "alone"), [("previous", [0]), ("next", [5]), ("any", []), ("neighbors", [])])
def test_the_block_without_a_partner_is_left_out(compare, alone):
    m = similar_blocks(6, similar=(5,), settings={"compare": compare})
    assert np.flatnonzero(np.isnan(by_depth(m)[0])).tolist() == alone


def test_a_threshold_that_depends_on_the_image_is_the_last_row():
    values = np.zeros((51, 3))
    values[-1] = [0.1, 0.2, 0.3]
    m = measurement("similar_blocks", values, settings={"tau": "nbr-mean"})
    np.testing.assert_array_equal(by_depth(m)[0][1:], [0.2, 0.3])


def test_the_mean_over_heads_is_drawn_with_an_interval_no_narrower_than_the_exact_one():
    rng = np.random.default_rng(0)
    m = measurement("row_entropy", rng.random((5, 4)))
    mean, low, high = by_depth(m)
    np.testing.assert_allclose(mean, m.mean.mean(1))
    of_heads = m.per_image.mean(2)  # the exact interval of the mean over heads
    half = 1.96 * of_heads.std(0, ddof=1) / np.sqrt(m.n_images)
    assert (high - low >= 2 * half - 1e-12).all()


def test_runs_share_an_axes_in_different_colours_and_baselines_are_named_once():
    runs = [examined(name, layers=6, heads=2, similar=(5, 6)) for name in "ab"]
    ax = None
    for e in runs:
        ax = depth_curve(e.measurements["similar_blocks"], ax, label=e.name)
    assert line(ax, "a").get_color() != line(ax, "b").get_color()
    named = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(named) == ["a", "b", "uniform", "untrained"]
    dotted = [drawn for drawn in ax.get_lines() if drawn.get_label() == "untrained"]
    assert [drawn.get_color() for drawn in dotted] == [line(ax, "a").get_color(), line(ax, "b").get_color()]


def test_runs_of_different_depth_show_all_blocks_of_the_deeper_one(labels):
    ax = depth_curve(similar_blocks(8, similar=()), label="8")
    depth_curve(similar_blocks(4, similar=()), ax, label="4")
    assert labels(ax.xaxis)[-1] == (7, "8")


def test_a_name_that_starts_with_an_underscore_is_in_the_legend():
    ax = depth_curve(similar_blocks(4, similar=()), label="_x$y")
    assert "_x$y" in [text.get_text().strip() for text in ax.get_legend().get_texts()]
    ax.figure.canvas.draw()


def test_depth_curve_refuses_other_axes():
    with pytest.raises(ShapeError, match="depth_curve draws"):
        depth_curve(measurement("layer_similarity", layer_cosine(3, 0.5)))


def runs_of_one_method(seeds=3, layers=4, heads=2, images=9):
    rng = np.random.default_rng(0)
    ids = tuple(f"image{i}" for i in range(images))
    for _ in range(seeds):
        values = 2 + 0.3 * rng.normal(size=(1, layers, 1)) + 0.1 * rng.normal(size=(images, layers, heads))
        m = measurement("row_entropy", values.mean(0))
        yield replace(m, per_image=values, image_ids=ids, n_images=images)


def test_runs_of_one_method_are_thin_lines_under_its_mean_and_band():
    runs = list(runs_of_one_method())
    ax = depth_curve(runs, label="vit", baselines=False)
    thin = [line for line in ax.get_lines() if line.get_label() == "_run"]
    np.testing.assert_allclose([line.get_ydata() for line in thin], [m.mean.mean(-1) for m in runs])
    np.testing.assert_allclose(line(ax, "vit").get_ydata(), np.mean([m.mean.mean(-1) for m in runs], 0))
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["vit"]
    assert all(thinner.get_linewidth() < line(ax, "vit").get_linewidth() for thinner in thin)


def test_the_band_is_over_runs_and_images_or_runs_alone():
    runs = list(runs_of_one_method())
    per_image = np.stack([m.per_image.mean(-1) for m in runs])
    expected = estimate(Runs(*scatter_of_mean(per_image), 9)).ci
    np.testing.assert_allclose(by_depth_of_runs(runs)[1:], expected)
    apart = [replace(m, image_ids=(f"own{k}", *m.image_ids[1:])) for k, m in enumerate(runs)]
    means = per_image.mean(1)
    np.testing.assert_allclose(by_depth_of_runs(apart)[1:], stats.t.interval(0.95, 2, means.mean(0), stats.sem(means)))
    narrow = [replace(m, value_range=(2.1, None)) for m in runs]
    np.testing.assert_allclose(by_depth_of_runs(narrow)[1], np.maximum(expected[0], 2.1))
    with pytest.raises(ShapeError, match="one depth"):
        depth_curve([runs[0], *runs_of_one_method(1, layers=6)])


def test_every_head_scatter_has_blocks_from_one_and_all_letters_inside(layers, heads, clipped, labels):
    ax = head_scatter(measurement("attention_distance", np.random.default_rng(0).random((layers, heads)) * 99))
    assert clipped(ax.figure) == []
    assert labels(ax.xaxis)[0] == (0, "1")


def test_every_head_is_a_dot_at_its_block_and_the_line_is_their_mean():
    values = np.random.default_rng(0).random((3, 4))
    ax = head_scatter(measurement("attention_distance", values))
    *dots, line = ax.get_lines()
    drawn = [(round(float(x)), float(y)) for dot in dots for x, y in zip(*dot.get_data(), strict=True)]
    assert sorted(drawn) == sorted((block, float(value)) for block, row in enumerate(values) for value in row)
    np.testing.assert_allclose(line.get_ydata(), values.mean(1))


def test_head_scatter_refuses_other_axes():
    with pytest.raises(ShapeError, match="head_scatter draws"):
        head_scatter(measurement("layer_similarity", layer_cosine(3, 0.5)))


def test_the_name_of_every_metric_stays_inside_a_figure_as_narrow_as_a_column(fresh_axes):
    drawn = [METRICS[name] for name in METRICS if METRICS[name].axes in (("layer",), ("layer", "head"))]
    assert len(drawn) > 20
    with matplotlib.rc_context(PRINT):
        for metric in drawn:
            ax = depth_curve(measurement(metric.name, np.full((4, 3)[: len(metric.axes)], 0.5)), fresh_axes(3.25, 2.2))
            ax.figure.draw_without_rendering()
            page, box = ax.figure.bbox, ax.yaxis.label.get_window_extent()
            assert page.y0 <= box.y0 and box.y1 <= page.y1 and page.x0 <= box.x0, ax.get_ylabel()


def test_no_number_along_the_axis_is_an_offset_from_another(fresh_axes, labels):
    m = measurement("row_entropy", np.linspace(2.83301, 2.83302, 8).reshape(4, 2), spread=1e-7)
    for draw in (depth_curve, head_scatter):
        ax = draw(m, fresh_axes())
        ax.figure.draw_without_rendering()
        assert not ax.yaxis.get_offset_text().get_text()
        assert all(text.startswith("2.83") for _, text in labels(ax.yaxis))
