import numpy as np
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from attnprobe.stats.holm import holm


def rejected_by_steps(p, level):
    """Holm's procedure in words: the smallest first, until one is not below level / (number left)."""
    left, found = sorted(range(len(p)), key=lambda i: p[i]), set()
    while left and p[left[0]] <= level / len(left):
        found.add(left.pop(0))
    return found


@settings(max_examples=60, deadline=None)
@given(p=st.lists(st.floats(0, 1), min_size=1, max_size=12), level=st.sampled_from([0.01, 0.05, 0.2]))
def test_rejects_what_the_step_down_procedure_rejects(p, level):
    adjusted = holm(np.array(p))
    assume(not np.isclose(adjusted, level).any())
    assert set(np.flatnonzero(adjusted <= level).tolist()) == rejected_by_steps(p, level)
    assert (adjusted >= np.array(p) - 1e-15).all() and (adjusted <= 1).all()


def test_known_values_and_shapes():
    np.testing.assert_allclose(holm(np.array([[0.01, 0.04], [0.03, 0.005]])), [[0.03, 0.06], [0.06, 0.02]])
    assert holm(np.empty(0)).shape == (0,) and holm(np.array([0.7])).tolist() == [0.7]
