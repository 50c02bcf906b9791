import pytest

from attnprobe.core.wording import blocks_text, one_run_each


@pytest.mark.parametrize(
    ("blocks", "text"),
    [
        ([3], "block 3"),
        ([3, 7], "blocks 3 and 7"),
        ([3, 4, 5, 9], "blocks 3–5 and 9"),
        ([1, 3, 8, 9], "blocks 1, 3 and 8–9"),
    ],
)
def test_blocks_are_listed_in_words(blocks, text):
    assert blocks_text(blocks) == text


def test_single_runs_reach_no_further_than_themselves():
    assert one_run_each(2) == "One run each: about these two checkpoints, not about the methods."
    assert "these 3 checkpoints" in one_run_each(3)
