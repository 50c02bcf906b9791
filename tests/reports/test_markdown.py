import re

from attnprobe.reports.markdown import to_markdown
from tests.reports.formulas import examined


def rows_of(text):
    return [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if line.startswith("|")]


def test_the_table_is_a_rectangle_with_the_untrained_networks_beside():
    rows = rows_of(to_markdown([examined("a", layers=4), examined("b", layers=3, untrained=None)]))
    assert [cell.strip() for cell in rows[0][1:]] == ["a", "a, untrained", "b"]
    assert {len(row) for row in rows} == {4}


def test_verdict_and_settings_come_first():
    text = to_markdown([examined("a", layers=4, similar=(4,))])
    assert text.index("**a**: repetition in block 4") < text.index("similar: more than 90%") < text.index("| mean")


def test_names_stay_names():
    name = "<script>|`*[x](javascript:y)\n# h"
    text = to_markdown([examined(name, layers=3)])
    assert "<" not in text
    assert {len(row) for row in rows_of(text)} == {3}
    assert len([line for line in text.splitlines() if line.startswith("#")]) == 1
