"""Names are text in LaTeX, whatever is in them."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.text import visible
from attnprobe.reports.markup import ESCAPES, booktabs, latex, to_markdown
from tests.reports.formulas import examined

SPECIAL = '\\{}$&#%_^~<>|"'


@pytest.mark.promise("names-hostile")
@given(text=st.text(alphabet=st.sampled_from(SPECIAL + "a0 ‹\u202e\n")))
@settings(max_examples=80, deadline=None)
def test_escaping_can_be_undone_and_leaves_no_active_character(text):
    escaped = latex(text)
    back = {long: short for short, long in ESCAPES.items()}
    pattern = "|".join(re.escape(long) for long in sorted(back, key=len, reverse=True))
    assert re.sub(pattern, lambda match: back[match[0]], escaped) == visible(text)
    bare = re.sub(pattern, "", escaped)
    assert not set(bare) & set(SPECIAL)


def test_a_table_has_a_row_per_run_and_rules_of_booktabs():
    text = booktabs(("model", "top-1 [%]"), [["vit_16", "90 (80–95)"], ["[a] & b", "–"]], caption="50 %", label="tab:x")
    lines = text.splitlines()
    assert r"\begin{tabular}{lr}" in lines and r"\caption{50 \%}" in lines
    rows = lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]
    assert rows == [r"vit\_16 & 90 (80--95) \\", r"{}[a] \& b & -- \\"]


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
