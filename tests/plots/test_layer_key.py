import numpy as np
import pytest

from attnprobe.core.errors import ShapeError
from attnprobe.plots import layer_key, plot
from tests.reports.formulas import examined, measurement


def rollout(layers, tokens):
    values = np.random.default_rng(0).random((layers, tokens))
    return measurement("attention_rollout", values / values.sum(1, keepdims=True))


@pytest.mark.parametrize(("layers", "tokens"), [(1, 1), (4, 17), (48, 197)])
def test_blocks_go_down_and_tokens_to_the_right_at_any_size(layers, tokens, clipped, labels):
    m = rollout(layers, tokens)
    ax = plot(m)
    assert clipped(ax.figure) == [] and ax.get_ylabel() == "block"
    image = ax.get_images()[0]
    np.testing.assert_array_equal(image.get_array(), m.mean)
    assert image.norm.vmax == pytest.approx(m.mean.max()) and ax.yaxis_inverted()
    assert labels(ax.yaxis)[0] == (0, "1")


def test_other_axes_are_refused():
    with pytest.raises(ShapeError, match="layer_key draws axes"):
        layer_key(examined(layers=3).measurements["row_entropy"])
