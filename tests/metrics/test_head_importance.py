import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.errors import ShapeError
from attnprobe.metrics import head_ablation, head_importance
from attnprobe.metrics.head_importance import of_unit_length

IDS = ("a", "b", "c")


def gradients(seed=0, layers=4, heads=3):
    return np.random.default_rng(seed).normal(size=(3, layers, heads))


def test_it_is_the_mean_size_over_the_length_of_its_layer():
    values = gradients()
    m = head_importance(values, IDS)
    for layer in range(4):
        mean = [sum(abs(values[i, layer, h]) for i in range(3)) / 3 for h in range(3)]
        length = sum(x * x for x in mean) ** 0.5
        np.testing.assert_allclose(m.mean[layer], [x / length for x in mean], rtol=1e-12)
    assert m.axes == ("layer", "head") and m.value_range == (0, 1) and m.image_ids == IDS
    assert (m.ci[0] <= m.mean).all() and (m.mean <= m.ci[1]).all() and "1905.10650" in m.explanation


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), factor=st.floats(0.1, 10), heads=st.integers(1, 6))
def test_scale_and_sign_of_gradients_do_not_matter_and_heads_only_change_places(seed, factor, heads):
    values = gradients(seed, heads=heads)
    m = head_importance(values, IDS, bootstrap=0).mean
    np.testing.assert_allclose(head_importance(-factor * values, IDS, bootstrap=0).mean, m)
    np.testing.assert_allclose(head_importance(values[..., ::-1], IDS, bootstrap=0).mean, m[:, ::-1])
    np.testing.assert_allclose((m**2).sum(-1), 1)


def test_a_layer_that_nothing_depends_on_has_zeros_and_absent_heads_stay_absent():
    values = gradients()
    values[:, 1] = 0
    values[:, 2, 2] = np.nan
    m = head_importance(values, IDS)
    assert (m.mean[1] == 0).all()
    assert np.isnan(m.mean[2, 2]) and np.isfinite(np.delete(m.mean.ravel(), 8)).all()
    np.testing.assert_allclose(np.nansum(m.mean[2] ** 2), 1)
    assert np.isfinite(np.delete(m.ci.reshape(2, -1), 8, axis=1)).all()


def test_one_image_has_no_interval():
    for function in (head_importance, head_ablation):
        m = function(gradients()[:1], IDS[:1])
        assert np.isnan(m.ci).all() and m.settings["interval"] == "none"


def test_ablation_is_the_mean_gain_in_nats_with_its_sign():
    values = gradients(3)
    m = head_ablation(values, IDS)
    np.testing.assert_allclose(m.mean, values.mean(0))
    np.testing.assert_allclose(m.std, values.std(0, ddof=1))
    assert m.mean.min() < 0 and m.unit == "nats" and (m.ci[0] <= m.ci[1]).all()


def test_other_shapes_are_refused():
    for function in (head_importance, head_ablation):
        with pytest.raises(ShapeError, match="of 3 images"):
            function(gradients()[:2], IDS)


def test_lengths_are_taken_within_each_resample():
    means = np.abs(gradients())
    np.testing.assert_allclose(of_unit_length(means)[1], of_unit_length(means[1]))
