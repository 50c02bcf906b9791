import numpy as np
import pytest

from attnprobe.core.errors import ShapeError
from attnprobe.plots import head_scatter
from tests.reports.formulas import layer_cosine, measurement


def test_every_size_has_blocks_from_one_and_all_letters_inside(layers, heads, clipped, labels):
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


def test_other_axes_are_refused():
    with pytest.raises(ShapeError, match="head_scatter draws"):
        head_scatter(measurement("layer_similarity", layer_cosine(3, 0.5)))
