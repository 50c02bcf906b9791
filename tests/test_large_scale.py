"""The simulation of scheduling: bounds that hold whatever is drawn."""

import pytest

from examples.large_scale import Fleet, simulate

EVEN = (1.0,)


@pytest.mark.parametrize("pulled", [True, False])
def test_equal_parts_and_workers_take_the_share_of_each(pulled):
    assert simulate(EVEN, 12, 5.0, Fleet(4), pulled, 0) == (15.0, 0)
    assert simulate(EVEN, 13, 5.0, Fleet(4), pulled, 0) == (20.0, 0)


def test_slow_workers_decide_where_parts_are_dealt_out_and_hardly_where_they_are_pulled():
    fleet = Fleet(10, slow=0.3, factor=4.0)
    dealt, pulled = (simulate(EVEN, 1000, 1.0, fleet, way, 1)[0] for way in (False, True))
    assert dealt == 400.0 and 100.0 < pulled < dealt / 2


@pytest.mark.parametrize("pulled", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_failures_lose_time_and_no_part(pulled, seed):
    """Work done, wasted and waited for is at least the work there is; the same seed gives the same end."""
    fleet = Fleet(3, hours=0.02, restart=10.0)
    end, again = simulate((0.8, 1.0, 1.2), 60, 6.0, fleet, pulled, seed)
    assert again > 0 and end >= 0.8 * 60 * 6.0 / 3
    assert (end, again) == simulate((0.8, 1.0, 1.2), 60, 6.0, fleet, pulled, seed)
