"""What a report calls similar or redundant is what is tried."""

from dataclasses import replace

import pytest

from attnprobe.core.errors import InputError
from attnprobe.reports.kinds import OTHER_BARS
from attnprobe.workflows.candidates import Candidates, redundant_heads, reported_candidates
from tests.reports.formulas import head_distance, measurement, similar_blocks


def test_redundant_heads_are_all_but_one_of_each_group():
    m = measurement("head_divergence", head_distance(4, 5, twins=3))
    assert list(redundant_heads(m)) == [(3, 2), (3, 3), (4, 2), (4, 3)]
    some = replace(m, coords={"layer": [2, 5, 8, 11]})
    assert list(redundant_heads(some)) == [(8, 2), (8, 3), (11, 2), (11, 3)]


def test_reported_blocks_are_the_similar_ones_in_words_and_numbers():
    found = reported_candidates({"similar_blocks": similar_blocks(6, similar=(4, 6))}, "attention")
    expected = "the report calls 2 blocks similar and 0 heads redundant, " + OTHER_BARS
    assert found == Candidates([4, 6], [], expected, "attention", reported=True)
    with pytest.raises(InputError, match="nothing says what could be removed"):
        reported_candidates({}, "block")
