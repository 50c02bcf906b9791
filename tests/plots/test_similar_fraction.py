from dataclasses import replace

import numpy as np
import pytest

from attnprobe.core.errors import InputError, ShapeError
from attnprobe.plots import similar_fraction
from tests.reports.formulas import layer_cosine, measurement, similar_blocks


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
