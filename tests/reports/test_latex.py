"""Names are text in LaTeX, whatever is in them."""

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.text import visible
from attnprobe.reports.latex import ESCAPES, booktabs, latex

SPECIAL = '\\{}$&#%_^~<>|"'


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
