import pytest

from attnprobe.core.wording import blocks_text


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
