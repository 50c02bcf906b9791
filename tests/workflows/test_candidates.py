"""What a report calls similar or redundant is what is tried."""

import pytest

from attnprobe.core.errors import InputError
from attnprobe.reports.kinds import OTHER_BARS
from attnprobe.workflows.candidates import Candidates, reported_candidates
from tests.reports.formulas import similar_blocks


def test_reported_blocks_are_the_similar_ones_in_words_and_numbers():
    found = reported_candidates({"similar_blocks": similar_blocks(6, similar=(4, 6))}, "attention")
    expected = "the report calls 2 blocks similar and 0 heads redundant, " + OTHER_BARS
    assert found == Candidates([4, 6], [], expected, "attention", reported=True)
    with pytest.raises(InputError, match="nothing says what could be removed"):
        reported_candidates({}, "block")
