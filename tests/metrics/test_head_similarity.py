import itertools

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.metrics import head_similarity
from tests.metrics import naive


def test_equals_a_double_loop_over_cosines_of_whole_maps(soft, signed):
    for maps in (soft(2, 2, 3, 4, 5), signed(2, 2, 3, 4, 4)):
        fast = head_similarity(maps)
        for i, layer, h, g in itertools.product(range(2), range(2), range(3), range(3)):
            slow = naive.cosine(maps[i, layer, h].flatten().tolist(), maps[i, layer, g].flatten().tolist())
            np.testing.assert_allclose(fast[i, layer, h, g], slow, atol=1e-12)


def test_equal_heads_one_disjoint_heads_zero_and_a_dead_head_zero_with_itself():
    identity = torch.eye(5).double()
    heads = torch.stack([identity, identity, identity.roll(1, 0), torch.zeros(5, 5).double()])
    expected = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]).double()
    torch.testing.assert_close(head_similarity(heads[None, None])[0, 0], expected)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**16), heads=st.integers(1, 5))
def test_symmetric_in_range_and_permuted_with_the_heads(seed, heads):
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(rng.normal(size=(2, 2, heads, 4, 4)))
    c = head_similarity(maps)
    torch.testing.assert_close(c, c.mT)
    assert (c.abs() <= 1 + 1e-12).all()
    order = torch.from_numpy(rng.permutation(heads))
    torch.testing.assert_close(head_similarity(maps[:, :, order]), c[:, :, order][..., order])
