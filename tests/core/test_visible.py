import unicodedata

from hypothesis import given, settings
from hypothesis import strategies as st

from attnprobe.core.visible import markdown, short, visible


def test_bidi_and_control_characters_are_spelt_out():
    assert visible("gpj.\u202eexe\x1b[31m\n\u2066x\u200f") == "gpj.‹U+202E›exe‹U+001B›[31m‹U+000A›‹U+2066›x‹U+200F›"


def test_letters_of_any_script_stay():
    assert visible("Größe 数字 цифры أرقام µ–") == "Größe 数字 цифры أرقام µ–"


@given(st.text(st.characters(codec=None), max_size=30))
@settings(max_examples=80, deadline=None)
def test_nothing_hidden_is_left_and_the_result_can_be_written(text):
    shown = visible(text)
    shown.encode("utf-8")
    assert not any(unicodedata.category(c) in ("Cc", "Cf", "Cs") for c in shown)
    assert visible(shown) == shown


@given(st.text(max_size=80), st.integers(2, 40))
@settings(max_examples=50, deadline=None)
def test_short_names_fit_and_say_that_they_are_cut(text, length):
    cut = short(text, length)
    assert len(cut) <= length
    assert cut == visible(text) or cut.endswith("…")


def test_markdown_sees_no_markup():
    assert markdown("<b>|`x`*[a](b)*$") == "&lt;b&gt;\\|\\`x\\`\\*\\[a\\](b)\\*\\$"
