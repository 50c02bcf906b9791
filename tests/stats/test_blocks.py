from dataclasses import replace

import numpy as np
import pytest

from attnprobe.core.errors import InputError
from attnprobe.stats.blocks import per_block
from tests.reports.formulas import measurement, similar_blocks

RNG = np.random.default_rng(0)


def test_of_pairs_of_layers_it_is_the_block_before():
    values = RNG.random((4, 4))
    np.testing.assert_array_equal(per_block(measurement("layer_similarity", values)), [np.nan, *values.diagonal(1)])


def test_of_heads_and_pairs_of_heads_it_is_the_mean():
    values = RNG.random((3, 4))
    np.testing.assert_allclose(per_block(measurement("row_entropy", values)), values.mean(1))
    pairs = RNG.random((3, 2, 2))
    expected = [(block[0, 1] + block[1, 0]) / 2 for block in pairs]
    np.testing.assert_allclose(per_block(measurement("head_divergence", pairs)), expected)
    assert np.isnan(per_block(measurement("head_divergence", np.zeros((3, 1, 1))))).all()
    np.testing.assert_array_equal(per_block(measurement("token_similarity", values[:, 0])), values[:, 0])


@pytest.mark.parametrize(("compare", "alone"), [("previous", 0), ("next", 5), ("any", None)])
def test_of_similar_blocks_it_is_the_share_at_tau(compare, alone):
    m = similar_blocks(6, similar=(5, 6), settings={"tau": 0.7, "compare": compare})
    expected = m.mean[m.coords["threshold"].index(0.7)].copy()
    if alone is not None:
        expected[alone] = np.nan
    np.testing.assert_array_equal(per_block(m), expected)


def test_what_has_no_layer_is_refused():
    with pytest.raises(InputError, match="'row_entropy' has axes .head., so no number per block"):
        per_block(replace(measurement("row_entropy", RNG.random((3, 4))), axes=("head",)))
